"""What the tinted model is pulled towards: one loss per sample, shape (B,).

An objective maps (output of the tinted model, output of the expert), both (B, classes, ...) or, for
`l1`, of any equal shape, to the B losses. Write your own and pass it wherever a name goes.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from fusion_tinting.errors import unknown

Objective = Callable[[Tensor, Tensor], Tensor]


def hard(output: Tensor, expert: Tensor) -> Tensor:
    """Cross-entropy against the expert's arg-max (arXiv 2412.19098 v1, v2 and the released code).

    A single output (B, 1) is no class distribution: there it is `l1`, in `soft` too.
    """
    if output.shape[1] == 1:
        return l1(output, expert)
    return _per_sample(F.cross_entropy(output, expert.argmax(1), reduction="none"))


def soft(output: Tensor, expert: Tensor) -> Tensor:
    """Cross-entropy against the expert's probabilities (arXiv v3); of a single output as `hard`."""
    if output.shape[1] == 1:
        return l1(output, expert)
    return _per_sample(F.cross_entropy(output, expert.softmax(1), reduction="none"))


def entropy(output: Tensor, expert: Tensor) -> Tensor:
    """Entropy of the prediction itself; no teacher. Without a tint this is AdaMerging (2310.02575)."""
    return _per_sample(-(output.softmax(1) * output.log_softmax(1)).sum(1))


def l1(output: Tensor, expert: Tensor) -> Tensor:
    """Mean absolute difference: regression and dense prediction (depth, normals)."""
    return _per_sample((output - expert).abs())


OBJECTIVES: dict[str, Objective] = {"hard": hard, "soft": soft, "entropy": entropy, "l1": l1}
OF_CLASSES = ("hard", "soft", "entropy")
"""Those that read of the expert its class distribution alone, not the values themselves."""


def resolve_objective(objective: str | Objective) -> Objective:
    """An objective from its name; callables pass through."""
    if callable(objective):
        return objective
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]


def divergence(output: Tensor, expert: Tensor) -> Tensor:
    """KL(expert ‖ output) of class distributions, nats, averaged over positions; shape (B,)."""
    told, theirs = output.log_softmax(1), expert.log_softmax(1)
    return _per_sample((theirs.exp() * (theirs - told)).sum(1))


def agreement(output: Tensor, expert: Tensor, of_values: bool = False) -> Tensor:
    """How far a sample's output agrees with the expert's, in [0, 1]; shape (B,).

    Class logits: 1 where the arg-max is the same (averaged over positions of a dense output).
    Values, which outputs with a single channel always are: 1 − min(1, |output − expert|₁ / |expert|₁).
    """
    if not of_values and output.ndim > 1 and output.shape[1] > 1:
        return _per_sample((output.argmax(1) == expert.argmax(1)).float())
    error, size = _per_sample((output - expert).abs()), _per_sample(expert.abs())
    return 1 - (error / size.clamp(min=1e-12)).clamp(max=1)


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values
