"""Where the K task vectors of P numbers are kept: in memory, in a file that is read piece by piece, or
shared out over processes."""

import copy
import mmap
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, distributed

from fusion_tinting.run.cache import cache_folder

PIECE = 1 << 16
"""Columns converted to float32 at a time: K times this stays in the processor's cache."""
HELD = 1 << 20
"""Columns of a memory-mapped file that may be resident before they are let go."""


class Rows:
    """K rows of P numbers in memory.

    Attributes:
        whole: the rows, or this process's columns of them.
        shared: whether the columns are shared out over processes.

    Args:
        count, width: K and P.
        dtype: float32, or a half-precision type that `pieces` converts to float32.
        device: where they are.
    """

    shared = False

    def __init__(self, count: int, width: int, dtype: torch.dtype, device: torch.device):
        self.whole = torch.empty(count, width, dtype=dtype, device=device)

    def write(self, k: int, row: Tensor) -> None:
        """Set row `k`, converted to the rows' own dtype."""
        self.whole[k] = row

    def to(self, device: torch.device | str) -> "Rows":
        """The same rows on another device."""
        moved = copy.copy(self)
        moved.whole = self.whole.to(device)
        return moved

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """(a, b, columns a to b as float32, shape (K, b - a)), from `start` to `stop`.

        Float32 rows are not copied and come in one piece; others in pieces, in a buffer that the next
        piece overwrites.
        """
        if self.whole.dtype == torch.float32:
            yield start, stop, self.whole[:, start:stop]
            return
        size = min(PIECE if self.whole.device.type == "cpu" else stop - start, stop - start)
        buffer = torch.empty(len(self.whole), size, device=self.whole.device)
        for a in range(start, stop, max(size, 1)):
            b = min(a + size, stop)
            yield a, b, buffer[:, : b - a].copy_(self.whole[:, a:b])

    def release(self) -> None:
        """Let go of what is resident for no reason; nothing, in memory."""

    def complete(self, flat: Tensor) -> None:
        """Make `flat`, shape (P,), whole, of which `pieces` gave only what is here; nothing, in memory."""

    def __deepcopy__(self, _) -> "Rows":
        return self  # never changed once written, and large


class MappedRows(Rows):
    """The same in a nameless file of the cache folder, of which about `HELD` columns are resident.

    The pages stay in the system's cache while there is room, so that reading them again is fast.

    Raises:
        OSError: no room on the disk; found out before anything is written.
        ValueError: a device other than the CPU.
    """

    def __init__(self, count: int, width: int, dtype: torch.dtype, device: torch.device):
        refuse_device(torch.device(device))
        folder = cache_folder()
        self._row_bytes = width * dtype.itemsize
        size = count * self._row_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the map)
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            raise OSError(
                f"`task_vectors.storage: mmap` needs {size / 1e9:.2f} GB in `{folder}`: {error}. "
                "Free space, or set FUSION_TINTING_CACHE to a folder with more."
            ) from error
        self._map = mmap.mmap(self._file.fileno(), size)
        self.whole = torch.frombuffer(self._map, dtype=dtype).view(count, width)
        self._released = 0

    def write(self, k: int, row: Tensor) -> None:
        # Through the file, not the map: a write to the map would make its pages resident.
        part = row.cpu().to(self.whole.dtype).contiguous()
        view = memoryview(part.view(torch.uint8).numpy())
        offset = k * self._row_bytes
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def to(self, device: torch.device | str) -> "Rows":
        refuse_device(torch.device(device))
        return self

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        for low in range(start, stop, HELD):
            for a, b, columns in super().pieces(low, min(low + HELD, stop)):
                yield a, b, columns
                if b - self._released >= HELD:
                    self._release(self._released, b)

    def release(self) -> None:
        self._release(self._released, self.whole.shape[1])
        self._released = 0

    def _release(self, a: int, b: int) -> None:
        for k in range(len(self.whole)):
            first, last = (k * self._row_bytes + i * self.whole.itemsize for i in (a, b))
            first -= first % mmap.PAGESIZE
            if last > first:
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._released = b


class ShardedRows(Rows):
    """The same shared out over N processes: each holds P / N columns of every row, in memory.

    A merge then costs each process P / N of the arithmetic, and the merged weights are gathered; the
    gradients of the weights are summed where their columns are. Both move P numbers an update, where whole
    rows need to move none. Every process must do the same at the same time.

    Raises:
        ValueError: no process group of torch.distributed.
    """

    shared = True

    def __init__(self, count: int, width: int, dtype: torch.dtype, device: torch.device):
        if not distributed.is_initialized():
            raise ValueError(
                "`task_vectors.storage: sharded` shares task vectors out over the processes of "
                "torch.distributed. Found a single one; use `fabric.devices=2` or more, or `memory`."
            )
        ranks = distributed.get_world_size()
        self._bounds = [width * rank // ranks for rank in range(ranks + 1)]
        self._first, self._last = self._bounds[distributed.get_rank() :][:2]
        super().__init__(count, self._last - self._first, dtype, device)

    def write(self, k: int, row: Tensor) -> None:
        super().write(k, row[self._first : self._last])

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        start, stop = max(start, self._first), min(stop, self._last)
        if start < stop:
            for a, b, columns in super().pieces(start - self._first, stop - self._first):
                yield a + self._first, b + self._first, columns

    def complete(self, flat: Tensor) -> None:
        for rank, share in self._shares(0, flat):
            distributed.broadcast(share, rank)

    def sum(self, start: int, part: Tensor) -> None:
        """Sum `part`, columns from `start` on, over the processes; each gets those that it holds."""
        for rank, share in self._shares(start, part):
            distributed.reduce(share, rank)

    def _shares(self, start: int, part: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(rank, what it holds of the columns from `start` on), for those that hold any."""
        for rank, (a, b) in enumerate(pairwise(self._bounds)):
            share = part[max(a - start, 0) : max(b - start, 0)]
            if len(share):
                yield rank, share


def refuse_device(device: torch.device) -> None:
    """Refuse a device other than the CPU for a memory-mapped file."""
    if device.type != "cpu":
        raise ValueError(
            f"`task_vectors.storage: mmap` keeps task vectors on disk for the CPU. Found device "
            f"`{device}`; use `memory`, with `task_vectors.dtype: fp16` if room is short."
        )


STORAGES: dict[str, type[Rows]] = {"memory": Rows, "mmap": MappedRows, "sharded": ShardedRows}
