"""Who teaches: which samples of a batch enter the loss.

A sampler maps (logits of the tinted model, logits of the expert), both (B, classes), to a boolean
mask (B,). Write your own and pass it wherever a sampler's name goes.
"""

import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from fusion_tinting.errors import require_rows, unknown
from fusion_tinting.method.named import returned_by

Sampler = Callable[[Tensor, Tensor], Tensor]

DEFAULT_SHARE = 0.5
"""Of `top_confidence`, where no other is named."""


def every_sample(logits: Tensor, expert: Tensor) -> Tensor:
    """Keep the whole batch (Model Tinting).

    Args:
        logits: of the tinted model, (B, classes).
        expert: of the expert, the same shape.
    """
    return torch.ones(len(logits), dtype=torch.bool, device=logits.device)


def confidence_difference(logits: Tensor, expert: Tensor) -> Tensor:
    """Keep x unless the two disagree and the merged model is the more confident (Model Tinting++).

    With p, ŷ the largest softmax value and the arg-max of the expert (e) and the merged model (m):
    keep if ŷ_e = ŷ_m or p_e ≥ p_m. Source: arXiv 2412.19098 v1, v2.

    Args:
        logits: of the tinted model, (B, classes).
        expert: of the expert, the same shape.

    Raises:
        ValueError: outputs that are no class logits.
    """
    p_m, y_m = _confidence(logits)
    p_e, y_e = _confidence(expert)
    return (y_e == y_m) | (p_e >= p_m)


def top_confidence(logits: Tensor, expert: Tensor, share: float = DEFAULT_SHARE) -> Tensor:
    """Keep the `share` of the batch (rounded up) of which the expert is surest (arXiv v3's filter).

    Args:
        logits: of the tinted model, (B, classes); not read.
        expert: of the expert, the same shape.
        share: above 0, at most 1.

    Raises:
        ValueError: outputs that are no class logits.
    """
    p_e, _ = _confidence(expert)
    kept = p_e.topk(math.ceil(share * len(p_e))).indices
    return torch.zeros(len(p_e), dtype=torch.bool, device=p_e.device).index_fill_(0, kept, True)


_SAMPLERS: dict[str, Sampler] = {
    "all": every_sample,
    "confidence_difference": confidence_difference,
    "top_confidence": top_confidence,
}
SAMPLERS = MappingProxyType(_SAMPLERS)
"""Name -> sampler. Runs are told apart by these names, so that nobody can change what they mean."""


def resolve_sampler(sampler: str | Sampler) -> Sampler:
    """Return a sampler from its name; callables pass through.

    Args:
        sampler: a name among `SAMPLERS`, of which `top_confidence:0.3` sets the share; or a callable.

    Raises:
        ValueError: an unknown name, or a share out of range.
    """
    if callable(sampler):
        return sampler
    name, colon, text = str(sampler).partition(":")
    if name not in SAMPLERS or (colon and name != "top_confidence"):
        raise unknown("sampler", sampler, [*SAMPLERS, "top_confidence:<share>"])
    if not colon:
        return SAMPLERS[name]
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"The share in `sampler={sampler}` must be above 0 and at most 1.")
    return partial(top_confidence, share=share)


def kept_by(sampler: Sampler, logits: Tensor, expert: Tensor) -> Tensor:
    """Return which samples a sampler keeps, known to be a boolean mask (B,).

    Args:
        sampler: as `resolve_sampler` returns it.
        logits: of the tinted model, (B, ...).
        expert: of the expert, the same shape.

    Raises:
        ValueError: it returns something else, or changes what it is given.
    """
    keep: Tensor = returned_by("sampler", sampler, logits, expert)
    boolean = getattr(keep, "dtype", None) == torch.bool
    require_rows(keep, len(logits), "sampler", "a boolean mask", boolean)
    return keep


def _confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest softmax value and the arg-max. A single output gives (1, 0): no preference."""
    if logits.ndim != 2:
        raise ValueError(
            "Samplers by confidence need class logits of shape (batch, classes). Found "
            f"{tuple(logits.shape)}; use `sampler: all` for other outputs."
        )
    confidence, label = logits.softmax(1).max(1)
    return confidence, label
