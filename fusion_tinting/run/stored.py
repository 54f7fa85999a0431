"""Tensors that stay in their files: read when they are asked for, refused once a file has changed."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from fusion_tinting.run.files import opened


class StoredTensors(Mapping[str, Tensor]):
    """Tensors in safetensors files, by the names of a model's parameters.

    A tensor that is asked for is a view of the mapped file: the system reads its pages when they are used
    and drops them when memory is short.

    Args:
        places: parameter name -> (file, name in it).
        forms: parameter name -> what makes it of the tensor in the file, where they are not the same.

    Raises:
        OSError: a file that cannot be read.
        ValueError: a file that is cut short or no safetensors file.
    """

    def __init__(
        self,
        places: Mapping[str, tuple[Path, str]],
        forms: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ):
        self._places, self._forms = dict(places), forms or {}
        files = {file for file, _ in self._places.values()}
        self._seen = {file: _state(file) for file in files}
        self._open = {file: opened(file) for file in files}

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        if _state(file) != self._seen[file]:
            raise ValueError(
                f"`{file}` was changed or removed while its tensors were being read. Start again with the "
                "files as they were; a checkpoint of the run continues it."
            )
        tensor: Tensor = self._open[file].get_tensor(stored)
        return self._forms[name](tensor) if name in self._forms else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def dtypes_in(file: Path) -> set[str]:
    """Return the precisions of the tensors in a safetensors file, as it calls them.

    Args:
        file: its path.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    with opened(file) as tensors:
        return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118


def _state(file: Path) -> tuple[int, ...] | None:
    """Return what changes with a file's content; None where it is gone."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
