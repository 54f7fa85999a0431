"""Where the arithmetic runs: one process by default; hosts with several provide their own."""

import copy
import ctypes
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed

SMALL_MODEL = 5_000_000
"""Parameters up to which more CPU threads help or hurt by a multiple, depending on the machine (their
synchronization dominates), so that they are timed. Larger models take all."""
WORTHWHILE = 0.9
"""Twice the threads must take at most this share of the time, or they are not used."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
MOST = 32 << 20
"""Bytes of the largest piece that glibc keeps when it is freed, by itself."""


class Processes:
    """One process on one device. Subclass for several: override `rank`, `count`, `sum`, `autocast`.

    What there is to do is split over the ranks (thing i goes to rank i mod count), sums over the ranks make
    the parts whole again, and every rank takes the same step.

    Args:
        device: where the arithmetic runs.

    Attributes:
        rank: which of the processes this is, from 0.
        count: how many there are.
        shards: whether they share one model too, of which each holds a part; see `run.sharding`.
    """

    rank: int = 0
    count: int = 1
    shards: bool = False

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes.

        Args:
            tensor: of the same shape everywhere.
        """
        return tensor

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision in which models run, as a context."""
        return nullcontext()

    @property
    def precision(self) -> str:
        """The precision in which models run, such as `float32`."""
        kind = self.device.type
        with self.autocast():
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return str(dtype).removeprefix("torch.")

    def alone(self) -> "Processes":
        """Return the same device and precision, without the other processes."""
        one = copy.copy(self)
        one.rank, one.count, one.shards = 0, 1, False
        return one

    def share(self, items: Any) -> Any:
        """Return this process's share of a batch's rows, or of other things.

        Args:
            items: whatever can be sliced.
        """
        return items[self.rank :: self.count]

    def gather(self, part: Tensor, total: int) -> Tensor:
        """Return all processes' parts, interleaved as `share` dealt them.

        Args:
            part: this process's rows.
            total: the number of rows of all.
        """
        if self.count == 1:
            return part
        whole = part.new_zeros(total, *part.shape[1:])
        whole[self.rank :: self.count] = part
        return self.sum(whole.to(self.device)).to(part.device)


class DistributedProcesses(Processes):
    """The processes of torch.distributed, as `torchrun` starts them; call `init_process_group` before.

    Args:
        device: where this process's arithmetic runs.
        shards: whether the processes share one model, each holding a part of it.
    """

    def __init__(self, device: torch.device | str = "cpu", shards: bool = False):
        super().__init__(device)
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self.shards = shards and self.count > 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; see `Processes.sum`."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        distributed.all_reduce(total)
        return total


@contextmanager
def sensible_threads(
    parameters: int, device: torch.device, rehearsal: Callable[[], Callable[[], object]] | None = None
) -> Iterator[None]:
    """Use few CPU threads for a small model while the context lasts; the caller's count afterward.

    Args:
        parameters: how many the model has.
        device: where it runs; nothing happens on another than the CPU.
        rehearsal: gives work to try with one, two, four... threads, up to the caller's count; without
            it a small model gets one.
    """
    before = torch.get_num_threads()
    try:
        if device.type == "cpu" and parameters <= SMALL_MODEL and before > 1:
            torch.set_num_threads(1 if rehearsal is None else _fastest(rehearsal(), before))
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fitting_heap(parameters: int, device: torch.device, lean: int = 0) -> Iterator[None]:
    """Let glibc keep what a small model frees, and return what a large one does, while the context lasts.

    By itself it returns the top of its heap whenever some megabytes are free there, which is after every
    backward pass, and takes them again page by page: a tenth of a small model's step. And it keeps what
    lies below, in which blocks of a large model's size leave holes: up to ten bytes a parameter. With
    another C library, on a GPU, or with a large model that is not to be lean, nothing happens.

    Args:
        parameters: how many the model has.
        device: where it runs.
        lean: size in bytes of what a large model's freed memory is returned by; 0: as the system does.
    """
    small = parameters <= SMALL_MODEL
    if device.type != "cpu" or not (small or lean) or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    # Setting either turns off glibc's dynamic thresholds; their usual final values are those set last.
    libc.mallopt(M_MMAP_THRESHOLD, MOST if small else lean)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30 if small else lean)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, MOST)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MOST)
        libc.malloc_trim(0)


def _fastest(work: Callable[[], object], most: int) -> int:
    """Return the number of threads, doubled while that is worthwhile, with which `work` is done soonest."""
    best, least = 1, _seconds(work, 1)
    while 2 * best <= most and (seconds := _seconds(work, 2 * best)) <= WORTHWHILE * least:
        best, least = 2 * best, seconds
    return best


def _seconds(work: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    took = []
    for _ in range(5):  # the first warms up
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)
