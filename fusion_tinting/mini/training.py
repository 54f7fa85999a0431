"""How the models of every mini are trained: one loop, its settings, and shuffled batches for it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Advance = Callable[[int], Any]
"""Called with the number of steps just done."""


@dataclass(frozen=True)
class Training:
    """Settings of AdamW and of its learning rate.

    Args:
        steps: Number of optimizer steps.
        lr: Largest learning rate.
        weight_decay: AdamW's; 0 makes it Adam.
        warmup: Share of the steps over which the learning rate rises to `lr`, before it falls (one cycle);
            None: it falls from the first step, along a cosine.
        clip: Largest norm of the gradient; None: any.
        fused: Whether to use torch's fused kernel, which rounds otherwise: it is part of a recipe.
    """

    steps: int
    lr: float
    weight_decay: float = 0.01
    warmup: float | None = 0.3
    clip: float | None = None
    fused: bool = False


def fit(
    loss: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    training: Training,
    advance: Advance = lambda _: None,
) -> None:
    """Minimize a loss, one batch a step.

    Args:
        loss: Draws a batch and returns its mean loss.
        parameters: What is trained; or groups of it as torch takes them, each with an `lr` of its own.
        training: Settings.
        advance: Called after every step.
    """
    optimizer = torch.optim.AdamW(
        parameters, training.lr, weight_decay=training.weight_decay, fused=training.fused or None
    )
    schedule = _schedule(optimizer, training)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for _ in range(training.steps):
        optimizer.zero_grad()
        loss().backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(trained, training.clip)
        optimizer.step()
        schedule.step()
        advance(1)


def _schedule(optimizer: torch.optim.Optimizer, training: Training) -> torch.optim.lr_scheduler.LRScheduler:
    if training.warmup is None:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=training.steps, pct_start=training.warmup
    )


def drawn_batches(count: int, size: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Yield batches of different indices, each drawn from all; arguments as of `endless_batches`."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.choice(count, size, replace=False)


def endless_batches(count: int, size: int, seed: list[int]) -> Iterator[Tensor]:
    """Yield shuffled batches of indices; every epoch visits everything but an incomplete batch.

    Args:
        count: Number of samples.
        size: Samples in a batch.
        seed: Of NumPy's generator, which shuffles every epoch anew.
    """
    rng = np.random.default_rng(seed)
    size = min(size, count)
    while True:
        order = torch.from_numpy(rng.permutation(count))
        yield from order[: count - count % size].split(size)
