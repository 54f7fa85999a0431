"""What the tinted model is pulled towards: one loss per sample, shape (B,).

An objective maps (output of the tinted model, output of the expert), both (B, classes, ...) or, of values,
of any equal shape, to the B losses. Pass a function of your own wherever a name goes; make it an
`Objective` to say what it reads of the expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion_tinting.errors import require_rows, unknown
from fusion_tinting.method.named import require_name, returned_by

Loss = Callable[[Tensor, Tensor], Tensor]

PADDING = torch.finfo(torch.float32).min
"""Output of every class at a position that is none, such as those behind a text that is shorter than the
longest: it teaches nothing and counts nowhere."""


class Reads(Enum):
    """What an objective reads of the expert.

    It decides what is kept of a prediction, and how agreement is measured.
    """

    ARG_MAX = "the likeliest class"
    DISTRIBUTION = "the class distribution"
    LABELS = "a yes or no for each label, by its sigmoid"
    VALUES = "values"
    DIRECTION = "the direction of a vector"
    EVERYTHING = "the whole output"


@dataclass(frozen=True)
class Objective:
    """A loss, and what it reads of the expert.

    Attributes:
        name: what settings and artifacts call it, and what tells a run with it from others: it must say all
            that matters (see `Named`).
        loss: (output, expert), both (B, ...) -> losses (B,).
        reads: see `Reads`.

    Raises:
        ValueError: no name.
    """

    name: str
    loss: Loss
    reads: Reads = Reads.EVERYTHING

    def __post_init__(self) -> None:
        require_name(self.name)

    def __call__(self, output: Tensor, expert: Tensor) -> Tensor:
        """Return one loss per sample, shape (B,)."""
        return self.loss(output, expert)


def _hard(output: Tensor, expert: Tensor) -> Tensor:
    """Return the cross-entropy against the expert's arg-max.

    Source: arXiv 2412.19098 v1, v2 and the released code. A single output (B, 1) is no class distribution:
    there it is `l1`, in `soft` too.
    """
    if output.shape[1] == 1:
        return _l1(output, expert)
    return _over_positions(F.cross_entropy(output, expert.argmax(1), reduction="none"), output)


def _soft(output: Tensor, expert: Tensor) -> Tensor:
    """Return the cross-entropy against the expert's probabilities (arXiv 2412.19098 v3)."""
    if output.shape[1] == 1:
        return _l1(output, expert)
    return _over_positions(F.cross_entropy(output, expert.softmax(1), reduction="none"), output)


def _entropy(output: Tensor, expert: Tensor) -> Tensor:
    """Return the entropy of the prediction; without a tint this is AdaMerging (arXiv 2310.02575)."""
    return _over_positions(-(output.softmax(1) * output.log_softmax(1)).sum(1), output)


def _l1(output: Tensor, expert: Tensor) -> Tensor:
    """Return the mean absolute difference: regression and dense prediction (depth, normals)."""
    return _per_sample((output - expert).abs())


def _cosine(output: Tensor, expert: Tensor) -> Tensor:
    """Return 1 − cos(output, expert) along axis 1: embeddings, whose direction alone counts."""
    return _per_sample(1 - F.cosine_similarity(output, expert, dim=1))


def _sigmoid(output: Tensor, expert: Tensor) -> Tensor:
    """Return the mean binary cross-entropy against the expert's sigmoid: several labels at once."""
    return _per_sample(F.binary_cross_entropy_with_logits(output, expert.sigmoid(), reduction="none"))


hard = Objective("hard", _hard, Reads.ARG_MAX)
soft = Objective("soft", _soft, Reads.DISTRIBUTION)
entropy = Objective("entropy", _entropy, Reads.DISTRIBUTION)
l1 = Objective("l1", _l1, Reads.VALUES)
cosine = Objective("cosine", _cosine, Reads.DIRECTION)
sigmoid = Objective("sigmoid", _sigmoid, Reads.LABELS)

OBJECTIVES = MappingProxyType({o.name: o for o in (hard, soft, entropy, l1, cosine, sigmoid)})
"""Name -> objective; as `SAMPLERS`, what a name means cannot be changed."""


def resolve_objective(objective: str | Loss) -> Objective:
    """Return an objective from its name; a function becomes one that reads everything.

    Args:
        objective: a name among `OBJECTIVES`, an `Objective`, or a function as `Objective.loss`.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        return Objective(getattr(objective, "__qualname__", type(objective).__name__), objective)
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    return OBJECTIVES[objective]


def losses_of(objective: Objective, output: Tensor, expert: Tensor) -> Tensor:
    """Return an objective's losses, known to be one for each sample, shape (B,).

    Args:
        objective: of the task.
        output: of the tinted model, (B, ...).
        expert: of the expert, the same shape.

    Raises:
        ValueError: it returns something else, losses through which no gradient flows, or changes what it is
            given.
    """
    losses: Tensor = returned_by("objective", objective, output, expert)
    require_rows(losses, len(output), "objective", "one loss per sample")
    if output.requires_grad and not losses.requires_grad:
        raise ValueError(
            f"No gradient flows through the objective `{objective.name}`: nothing would be learned. It "
            "must compute its losses from the output, with functions that have a derivative."
        )
    return losses


def divergence(output: Tensor, expert: Tensor) -> Tensor:
    """Return KL(expert ‖ output) of class distributions, in nats, averaged over positions; shape (B,).

    Args:
        output: logits (B, classes, ...).
        expert: the same of the expert.
    """
    log_q, log_p = output.log_softmax(1), expert.log_softmax(1)
    return _over_positions((log_p.exp() * (log_p - log_q)).sum(1), output)


def agreement(output: Tensor, expert: Tensor, reads: Reads = Reads.ARG_MAX) -> Tensor:
    """Return how far a sample's output agrees with the expert's, in [0, 1]; shape (B,).

    Classes: 1 where the arg-max is the same, averaged over positions. Labels: the share of those on the
    same side of one half. Directions: the cosine similarity, or 0 where it is negative. Values, which
    outputs with a single channel always are: 1 − min(1, |output − expert|₁ / |expert|₁).

    Args:
        output: of the tinted model, (B, ...).
        expert: of the expert, the same shape.
        reads: what the task's objective reads of the expert.

    Raises:
        ValueError: outputs of two shapes.
    """
    if output.shape != expert.shape:
        raise ValueError(f"Outputs of shape {tuple(output.shape)} and {tuple(expert.shape)} cannot agree.")
    if reads is Reads.LABELS:
        return _per_sample(((output > 0) == (expert > 0)).float())
    if reads is Reads.DIRECTION:
        return (1 - _cosine(output, expert)).clamp(0, 1)
    if reads is not Reads.VALUES and output.ndim > 1 and output.shape[1] > 1:
        return _over_positions((output.argmax(1) == expert.argmax(1)).float(), output)
    error, size = _per_sample((output - expert).abs()), _per_sample(expert.abs())
    return 1 - (error / size.clamp(min=1e-12)).clamp(max=1)


def _per_sample(values: Tensor) -> Tensor:
    """Return the mean over everything but the samples."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _over_positions(values: Tensor, output: Tensor) -> Tensor:
    """Return the mean of values (B, ...) over the positions of outputs (B, classes, ...) but `PADDING`."""
    if values.ndim == 1:
        return values
    counts = (output[:, 0] != PADDING).flatten(1)
    return (values.flatten(1) * counts).sum(1) / counts.sum(1).clamp(min=1)
