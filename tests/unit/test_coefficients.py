import pytest
import torch

import fusion_tinting as ft

pytestmark = pytest.mark.quick

NAMES = ["embed.weight", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "norm.weight"]


@pytest.mark.parametrize(("granularity", "rows"), [("layer", 5), ("block", 4), ("task", 1)])
def test_granularity_sets_the_number_of_rows(granularity, rows):
    lam = ft.Coefficients(NAMES, ["a", "b"], granularity=granularity)
    assert lam.raw.shape == (rows, 2)
    assert lam().shape == (5, 2)


def test_a_block_shares_its_row():
    lam = ft.Coefficients(NAMES, ["a", "b"], granularity="block")
    lam.raw.data = torch.rand(4, 2)
    values = lam.named()
    assert torch.equal(values["blocks.0.weight"], values["blocks.0.bias"])
    assert not torch.equal(values["blocks.0.weight"], values["blocks.1.weight"])


def test_block_ten_is_not_block_one():
    lam = ft.Coefficients(["b.1.weight", "b.10.weight"], ["a"], granularity="block")
    assert len(lam.raw) == 2


def test_the_clamp_stops_the_gradient_outside_the_interval():
    lam = ft.Coefficients(["x", "y", "z"], ["a"])
    lam.raw.data = torch.tensor([[-0.5], [0.5], [1.5]])
    lam().sum().backward()
    assert lam().flatten().tolist() == [0.0, 0.5, 1.0]
    assert lam.raw.grad.flatten().tolist() == [0.0, 1.0, 0.0]


def test_without_the_clamp_values_are_free():
    lam = ft.Coefficients(["x"], ["a"], init=1.5, clamp=False)
    assert lam().item() == 1.5


def test_an_earlier_result_can_be_the_start():
    start = {name: torch.rand(2) for name in NAMES}
    assert ft.Coefficients(NAMES, ["a", "b"], init=start).named().keys() == start.keys()
    for name, row in ft.Coefficients(NAMES, ["a", "b"], init=start).named().items():
        assert torch.equal(row, start[name])


def test_a_start_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one row for each of .* it lacks \["):
        ft.Coefficients(NAMES, ["a"], init={"embed.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"must have 1 values.*\(2,\)"):
        ft.Coefficients(NAMES, ["a"], init={name: torch.ones(2) for name in NAMES})
    with pytest.raises(ValueError, match=r"Did you mean `block`"):
        ft.Coefficients(NAMES, ["a"], granularity="blocks")
