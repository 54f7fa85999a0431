"""The mean of raw λ and the tints over the last iterations: at a constant rate they oscillate around it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fusion_tinting.method.shards import here

LAST = 0.25
"""Share of the iterations that are averaged, the last ones; at least one."""


class Average:
    """x̄ = 1/N Σ_t x_t over the last N iterations, of everything that is trained.

    Polyak and Juditsky, 1992; stochastic weight averaging, arXiv 1803.05407. Not in the paper.

    Args:
        trained: name -> tensor, of which the mean is taken.
        steps: how many iterations there will be.

    Attributes:
        means: name -> the mean so far, of the tensor's shape.
    """

    def __init__(self, trained: Mapping[str, Tensor], steps: int):
        self.trained, self.first = trained, steps - max(1, round(LAST * steps))
        self.means = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Add what iteration `step` has left to the mean, if it is one of the last.

        Args:
            step: the iteration, from 0.
        """
        if step >= self.first:
            for name, tensor in self.trained.items():
                here(self.means[name]).lerp_(here(tensor), 1 / (step - self.first + 1))

    @torch.no_grad()
    def take(self) -> None:
        """Set the tensors to their means."""
        for name, tensor in self.trained.items():
            here(tensor).copy_(here(self.means[name]))
