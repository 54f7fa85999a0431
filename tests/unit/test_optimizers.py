"""Adam for λ and the tints: torch's own, but for the steps that are left out."""

import pytest
import torch
from torch import nn

import fusion_tinting as ft
from fusion_tinting.method.optimizers import Optimizers

pytestmark = pytest.mark.quick

YES, NO = torch.tensor(True), torch.tensor(False)


def make(**settings):
    torch.manual_seed(0)
    raw = nn.Parameter(torch.rand(3, 2))
    tints = {"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)}
    return raw, tints, Optimizers(raw, tints, ft.Settings(**settings))


def give_gradients(seed, *parameters):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_its_steps_are_torchs():
    raw, _, ours = make(lr=1e-2)
    theirs_raw = nn.Parameter(raw.detach().clone())
    theirs = torch.optim.Adam([theirs_raw], lr=1e-2, foreach=False, fused=False)
    for step in range(20):
        give_gradients(step, raw)
        give_gradients(step, theirs_raw)
        ours.step_coefficients(YES)
        theirs.step()
    torch.testing.assert_close(raw, theirs_raw, rtol=0, atol=1e-6)


def test_a_step_that_is_left_out_leaves_everything_alone():
    _, tints, ours = make()
    for step in range(3):
        give_gradients(step, *tints["a"].parameters())
        ours.step_tint("a", YES)
    before = {name: tensor.clone() for name, tensor in ours.tensors().items()}
    weight = tints["a"].weight.detach().clone()
    give_gradients(9, *tints["a"].parameters())
    ours.step_tint("a", NO)
    assert torch.equal(tints["a"].weight, weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.tensors().items())
    assert tints["a"].weight.grad is None


def test_one_tints_step_is_no_others():
    _, tints, ours = make()
    before = tints["b"].weight.detach().clone()
    give_gradients(0, *tints["a"].parameters(), *tints["b"].parameters())
    ours.step_tint("a", YES)
    assert torch.equal(tints["b"].weight, before)


def test_rates_apart():
    raw, tints, ours = make(lr=1e-2, lr_tints=1e-3)
    before = raw.detach().clone(), tints["a"].weight.detach().clone()
    for parameter in (raw, *tints["a"].parameters()):
        parameter.grad = torch.ones_like(parameter)
    ours.step_coefficients(YES)
    ours.step_tint("a", YES)
    # Adam's first step has the size of its rate.
    torch.testing.assert_close(before[0] - raw, torch.full_like(raw, 1e-2), rtol=0, atol=1e-6)
    step = before[1] - tints["a"].weight
    torch.testing.assert_close(step, torch.full_like(step, 1e-3), rtol=0, atol=1e-6)
