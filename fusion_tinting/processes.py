"""Where the arithmetic runs: one process by default; hosts with several provide their own."""

from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

SMALL_MODEL = 5_000_000
"""Parameters up to which one CPU thread is faster than several (their synchronisation dominates)."""


class Processes:
    """One process on one device. Subclass for several: override `rank`, `count`, `sum`, `autocast`.

    Every batch is split over the ranks (sample i goes to rank i mod count), sums over the ranks make
    the parts whole again, and every rank takes the same step.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes."""
        return tensor

    def autocast(self) -> AbstractContextManager:
        """The precision in which models run."""
        return nullcontext()

    def mine(self, items):
        """This process's share of a batch's indices."""
        return items[self.rank :: self.count]

    def gather(self, part: Tensor, total: int) -> Tensor:
        """All processes' parts of `total` rows, interleaved as `mine` dealt them."""
        if self.count == 1:
            return part
        whole = part.new_zeros(total, *part.shape[1:])
        whole[self.rank :: self.count] = part
        return self.sum(whole.to(self.device)).to(part.device)


@contextmanager
def sensible_threads(parameters: int, device: torch.device):
    """One CPU thread for a small model while the context lasts; the caller's count afterwards."""
    before = torch.get_num_threads()
    if device.type == "cpu" and parameters <= SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
