"""How the models of every mini are trained: the loop, and shuffled batches for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Advance = Callable[[int], None]
"""Called with the number of steps just done."""


def fit(
    loss: Callable[[], Tensor],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
    advance: Advance = lambda _: None,
    clip: float | None = None,
) -> None:
    """The training loop of every mini.

    Args:
        loss: draws a batch, and gives its mean loss.
        clip: the largest norm of a gradient.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        schedule.step()
        advance(1)


def endless_batches(count: int, size: int, rng: np.random.Generator):
    """Endless shuffled batches of indices; every epoch visits everything but an incomplete batch."""
    size = min(size, count)
    while True:
        order = torch.from_numpy(rng.permutation(count))
        yield from order[: count - count % size].split(size)
