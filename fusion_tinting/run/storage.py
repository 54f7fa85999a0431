"""Other places for task vectors than memory: files that are read piece by piece."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fusion_tinting.errors import unknown
from fusion_tinting.method.rows import Rows
from fusion_tinting.method.shards import OwnRows
from fusion_tinting.method.task_vectors import PRETRAINED, Files, TaskVectors
from fusion_tinting.method.tensors import HostTensors, Tensors
from fusion_tinting.run.cache import cache_folder
from fusion_tinting.run.processes import Processes

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
}
"""Name in `task_vectors.storage` -> what keeps the rows."""


def load_task_vectors(
    pretrained: nn.Module,
    experts: Mapping[str, nn.Module],
    options: Mapping[str, str],
    processes: Processes | None = None,
) -> TaskVectors:
    """Return θ₀ and the task vectors, kept where the options say; raises as `TaskVectors.from_models`.

    Args:
        pretrained: θ₀, an encoder.
        experts: task -> the encoder fine-tuned on it.
        options: as `Settings.task_vectors`; what is not named is as there.
        processes: who share the models, each keeping its rows; this one alone by default.
    """
    place = options.get("storage", "memory")
    if place not in STORAGES:
        raise unknown("storage", place, STORAGES)
    processes = processes or Processes()
    storage, shared = STORAGES[place], processes.shards
    return TaskVectors.from_models(
        pretrained,
        experts,
        storage=Tensors if shared and storage is Rows else storage,
        dtype=options.get("dtype", "fp32"),
        files=_files(experts, place, shared),
        part=partial(OwnRows, rank=processes.rank, count=processes.count) if shared else None,
        pretraining=options.get("pretraining", "same"),
    )


def _files(experts: Mapping[str, nn.Module], place: str, shared: bool) -> Files | None:
    """Return the files to read from: where asked, and by processes that share a model if there are any."""
    if place != "stream" and not shared:
        return None
    try:
        return stored_files(experts)
    except ValueError:
        if place == "stream":
            raise
        return None  # each process loads whole models then, one at a time, and keeps its rows


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
