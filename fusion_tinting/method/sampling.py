"""Who teaches: which samples of a batch enter the loss.

A sampler maps (logits of the tinted model, logits of the expert), both (B, classes), to a boolean
mask (B,). Write your own and pass it wherever a sampler's name goes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusion_tinting.errors import unknown

Sampler = Callable[[Tensor, Tensor], Tensor]


def every_sample(logits: Tensor, expert: Tensor) -> Tensor:
    """Keep the whole batch (Model Tinting)."""
    return torch.ones(len(logits), dtype=torch.bool, device=logits.device)


def confidence_difference(logits: Tensor, expert: Tensor) -> Tensor:
    """Keep x unless the two disagree and the merged model is the more confident (Model Tinting++).

    With p, ŷ the largest softmax value and the arg-max of the expert (e) and the merged model (m):
    keep if ŷ_e = ŷ_m or p_e ≥ p_m. Source: arXiv 2412.19098 v1, v2.
    """
    p_m, y_m = _confidence(logits)
    p_e, y_e = _confidence(expert)
    return (y_e == y_m) | (p_e >= p_m)


def top_confidence(logits: Tensor, expert: Tensor, share: float = 0.5) -> Tensor:
    """Keep the `share` of the batch (rounded up) of which the expert is surest (arXiv v3's filter)."""
    p_e, _ = _confidence(expert)
    kept = p_e.topk(math.ceil(share * len(p_e))).indices
    return torch.zeros(len(p_e), dtype=torch.bool, device=p_e.device).index_fill_(0, kept, True)


SAMPLERS: dict[str, Sampler] = {
    "all": every_sample,
    "confidence_difference": confidence_difference,
    "top_confidence": top_confidence,
}


def resolve_sampler(sampler: str | Sampler) -> Sampler:
    """A sampler from its name; `top_confidence:0.3` sets the share. Callables pass through."""
    if callable(sampler):
        return sampler
    name, _, share = str(sampler).partition(":")
    if name not in SAMPLERS or (share and name != "top_confidence"):
        raise unknown("sampler", sampler, [*SAMPLERS, "top_confidence:<share>"])
    if not share:
        return SAMPLERS[name]
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(f"The share in `sampler={sampler}` must be above 0 and at most 1.")
    return lambda logits, expert: top_confidence(logits, expert, value)


def _confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest softmax value and the arg-max; of a single output 1 and 0, so that none is preferred."""
    if logits.ndim != 2:
        raise ValueError(
            "Samplers by confidence need class logits of shape (batch, classes). Found "
            f"{tuple(logits.shape)}; use `sampler: all` for other outputs."
        )
    return tuple(logits.softmax(1).max(1))
