"""Golden values computed by hand, and what is common to all samplers and objectives."""

import math

import pytest
import torch

from fusion_tinting.method.objectives import (
    OBJECTIVES,
    PADDING,
    Reads,
    agreement,
    divergence,
    resolve_objective,
)
from fusion_tinting.method.sampling import SAMPLERS, resolve_sampler

pytestmark = pytest.mark.quick

# Row by row: they agree; they disagree and the expert is surer; they disagree and the model is surer;
# they disagree and are equally sure.
MODEL = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
EXPERT = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [0.0, 1.0]])


def test_confidence_difference_drops_only_surer_disagreement():
    assert SAMPLERS["confidence_difference"](MODEL, EXPERT).tolist() == [True, True, False, True]


def test_every_sample():
    assert SAMPLERS["all"](MODEL, EXPERT).tolist() == [True] * 4


@pytest.mark.parametrize(("share", "kept"), [(0.25, [1]), (0.3, [1, 0]), (1.0, [0, 1, 2, 3])])
def test_top_confidence_keeps_a_share_rounded_up(share, kept):
    expert = EXPERT + torch.tensor([[0.1, 0.0], [0, 0], [0, 0], [0, 0]])
    mask = resolve_sampler(f"top_confidence:{share}")(MODEL, expert)
    assert mask.nonzero().flatten().tolist() == sorted(kept)


def test_hard_is_cross_entropy_at_the_experts_class():
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.e), math.log(1 + math.exp(3))]
    losses = OBJECTIVES["hard"](MODEL[:3], EXPERT[:3])
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_soft_is_cross_entropy_with_the_experts_probabilities():
    p = 1 / (1 + math.exp(-1))
    q = math.log(1 + math.exp(-2))  # -log softmax of the model's first class; the other is q + 2
    losses = OBJECTIVES["soft"](MODEL[:1], EXPERT[:1])
    torch.testing.assert_close(losses, torch.tensor([p * q + (1 - p) * (q + 2)]))


def test_entropy_of_a_fair_coin_is_log_two():
    losses = OBJECTIVES["entropy"](torch.zeros(1, 2), EXPERT[:1])
    torch.testing.assert_close(losses, torch.tensor([math.log(2)]))


def test_l1():
    losses = OBJECTIVES["l1"](torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 2.0]]))
    assert losses.tolist() == [1.5]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_give_one_loss_per_sample_whatever_the_batch(name):
    torch.manual_seed(0)
    output, expert = torch.randn(2, 6, 4)
    losses = OBJECTIVES[name](output, expert)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses[2:4], OBJECTIVES[name](output[2:4], expert[2:4]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_take_dense_outputs(name):
    torch.manual_seed(0)
    assert OBJECTIVES[name](*torch.randn(2, 3, 4, 5, 5)).shape == (3,)


def test_agreement():
    assert agreement(MODEL, EXPERT).tolist() == [1, 0, 0, 0]
    assert agreement(torch.tensor([[2.0], [9.0]]), torch.tensor([[4.0], [1.0]])).tolist() == [0.5, 0]
    vectors = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[6.0, 0.0], [-6.0, 0.0]])
    torch.testing.assert_close(agreement(*vectors, Reads.DIRECTION), torch.tensor([0.6, 0.0]))


@pytest.mark.parametrize("name", ["hard", "soft", "entropy"])
def test_padding_neither_teaches_nor_counts(name):
    torch.manual_seed(0)
    output, expert = torch.randn(2, 2, 5, 3)
    output.requires_grad_()
    padded = [torch.cat([part, torch.full((2, 5, 4), PADDING)], dim=2) for part in (output, expert)]
    losses = OBJECTIVES[name](*padded)
    torch.testing.assert_close(losses, OBJECTIVES[name](output, expert))
    (gradient,) = torch.autograd.grad(losses.sum(), output)
    (expected,) = torch.autograd.grad(OBJECTIVES[name](output, expert).sum(), output)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(agreement(*padded), agreement(output, expert))
    torch.testing.assert_close(divergence(*padded), divergence(output, expert))


@pytest.mark.parametrize("resolve", [resolve_sampler, resolve_objective])
def test_unknown_names_list_the_choices(resolve):
    with pytest.raises(ValueError, match="Expected one of"):
        resolve("nothing")


def test_callables_pass():
    assert resolve_sampler(max) is max
    assert resolve_objective(max).loss is max
    assert resolve_objective(OBJECTIVES["l1"]) is OBJECTIVES["l1"]


@pytest.mark.parametrize("bad", ["top_confidence:0", "top_confidence:1.5", "top_confidence:x"])
def test_a_share_out_of_range(bad):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        resolve_sampler(bad)


def test_a_misspelt_sampler_gets_a_hint():
    with pytest.raises(ValueError, match="Did you mean `confidence_difference`"):
        resolve_sampler("confidence_diference")


def test_confidence_of_a_dense_output_is_refused():
    with pytest.raises(ValueError, match=r"class logits.*\(4, 2, 3\)"):
        SAMPLERS["confidence_difference"](torch.randn(4, 2, 3), torch.randn(4, 2, 3))


def test_a_single_output_has_no_confidence_and_all_of_it_teaches():
    assert SAMPLERS["confidence_difference"](torch.randn(4, 1), torch.randn(4, 1)).all()


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_of_a_single_output_the_objectives_of_classes_are_the_absolute_difference(name):
    output, expert = torch.randn(4, 1), torch.randn(4, 1)
    torch.testing.assert_close(OBJECTIVES[name](output, expert), (output - expert).abs().flatten())
