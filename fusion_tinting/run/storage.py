"""Other places for task vectors than memory: a file that is read piece by piece, or several processes."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, distributed, nn

from fusion_tinting.method.rows import Rows
from fusion_tinting.method.task_vectors import PRETRAINED, Files, TaskVectors
from fusion_tinting.method.tensors import HostTensors, Tensors
from fusion_tinting.run.cache import cache_folder

HELD = 1 << 20
"""Columns of a memory-mapped file that may be resident before they are released."""


class MappedRows(Rows):
    """Rows in a nameless file of the cache folder, of which about `HELD` columns are resident.

    The pages stay in the system's cache while there is room, so that reading them again is fast.

    Args:
        tensors: tensor name -> θ₀_l; on the CPU.
        count: K.
        dtype: of what is kept; see `Rows`.

    Raises:
        OSError: no room on the disk; found out before anything is written.
        ValueError: a device other than the CPU.
    """

    def _room(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        refuse_device(self.base.device)
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
        self._released = 0
        return torch.frombuffer(self._map, dtype=dtype).view(count, width)

    def write(self, k: int, row: Tensor) -> None:
        """Set row `k`; see `Rows.write`."""
        # Through the file, not the map: a write to the map would make its pages resident.
        part = row.cpu().to(self.whole.dtype).contiguous()
        view = part.view(torch.uint8).numpy().data
        offset = k * self._row_bytes
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def _moved(self, device: torch.device | str) -> Tensor:
        refuse_device(torch.device(device))
        return self.whole

    def columns(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the columns, and release those that are done with; see `Rows.columns`."""
        for low in range(start, stop, HELD):
            for a, b, columns in super().columns(low, min(low + HELD, stop)):
                yield a, b, columns
                if b - self._released >= HELD:
                    self._release(self._released, b)

    def release(self) -> None:
        """Release what is still resident."""
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
    """Rows shared out over N processes: each holds P / N columns of every row, in memory.

    A merge then costs each process P / N of the arithmetic, and the merged weights are gathered; the
    gradients of the weights are summed where their columns are. Each update moves P numbers twice, where
    rows in memory move none. Every process must do the same at the same time.

    Args:
        tensors: tensor name -> θ₀_l.
        count: K.
        dtype: of what is kept; see `Rows`.

    Raises:
        ValueError: no process group of torch.distributed.
    """

    shared = True

    def _room(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        if not distributed.is_initialized():
            raise ValueError(
                "`task_vectors.storage: sharded` shares task vectors out over the processes of "
                "torch.distributed. Found a single one; use `fabric.devices=2` or more, or `memory`."
            )
        ranks = distributed.get_world_size()
        self._bounds = [width * rank // ranks for rank in range(ranks + 1)]
        self._first, self._last = self._bounds[distributed.get_rank() :][:2]
        return super()._room(count, self._last - self._first, dtype)

    def write(self, k: int, row: Tensor) -> None:
        """Set this process's columns of row `k`; see `Rows.write`."""
        super().write(k, row[self._first : self._last])

    def columns(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield those of the columns that are here; see `Rows.columns`."""
        start, stop = max(start, self._first), min(stop, self._last)
        if start < stop:
            for a, b, columns in super().columns(start - self._first, stop - self._first):
                yield a + self._first, b + self._first, columns

    def complete(self, flat: Tensor) -> None:
        """Gather `flat` from the processes that hold its parts; see `Rows.complete`."""
        for rank, share in self._shares(0, flat):
            distributed.broadcast(share, rank)

    def sum(self, start: int, part: Tensor) -> None:
        """Sum `part` over the processes; each gets the columns that it holds.

        Args:
            start: the first column of `part`.
            part: shape (columns,).
        """
        for rank, share in self._shares(start, part):
            distributed.reduce(share, rank)

    def _shares(self, start: int, part: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (rank, what it holds of the columns from `start` on), for those that hold any."""
        for rank, (a, b) in enumerate(pairwise(self._bounds)):
            share = part[max(a - start, 0) : max(b - start, 0)]
            if len(share):
                yield rank, share


def refuse_device(device: torch.device) -> None:
    """Refuse a device other than the CPU for a memory-mapped file.

    Args:
        device: where the models run.

    Raises:
        ValueError: naming it.
    """
    if device.type != "cpu":
        raise ValueError(
            f"`task_vectors.storage: mmap` keeps task vectors on disk for the CPU. Found device "
            f"`{device}`; use `memory`, with `task_vectors.dtype: fp16` if room is short."
        )


STORAGES: dict[str, type[Rows] | type[Tensors]] = {
    "memory": Rows,
    "host": HostTensors,
    "stream": HostTensors,
    "mmap": MappedRows,
    "sharded": ShardedRows,
}
"""Name in `task_vectors.storage` -> what keeps the rows."""


def load_task_vectors(
    pretrained: nn.Module, experts: Mapping[str, nn.Module], options: Mapping[str, str]
) -> TaskVectors:
    """Return θ₀ and the task vectors, kept where the options say; raises as `TaskVectors.from_models`.

    Args:
        pretrained: θ₀, an encoder.
        experts: task -> the encoder fine-tuned on it.
        options: as `Settings.task_vectors`; what is not named is as there.
    """
    place = options.get("storage", "memory")
    load = partial(
        TaskVectors.from_models,
        pretrained,
        experts,
        storage=STORAGES[place],
        dtype=options.get("dtype", "fp32"),
        pretraining=options.get("pretraining", "same"),
    )
    if place != "stream":
        return load()
    return load(files=stored_files(experts))


def stored_files(experts: Mapping[str, nn.Module]) -> Files:
    """Return the tensors of θ₀ and of experts as they lie in files, for `task_vectors.storage: stream`.

    Args:
        experts: task -> encoder, loaded on access.

    Raises:
        ValueError: models that are in no files, or not in such as can be read tensor by tensor.
    """
    stored = getattr(experts, "stored", None)
    if stored is None:
        raise ValueError(
            "`task_vectors.storage: stream` reads experts from their safetensors files while it merges. "
            "These experts have none that are known: use `memory`."
        )
    return {name: stored(name) for name in (PRETRAINED, *experts)}
