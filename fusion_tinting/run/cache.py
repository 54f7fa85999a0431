"""A cache on disk of results that can be computed again, by a hash of what they were computed from."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion_tinting.run.files import read_tensors, write_tensors


def cache_folder() -> Path:
    """Return FUSION_TINTING_CACHE, or `fusion_tinting` in the user's cache folder (XDG_CACHE_HOME)."""
    if named := os.environ.get("FUSION_TINTING_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fusion_tinting"


def remember(kind: str, key: str, value: Tensor | Mapping[str, Tensor]) -> None:
    """Keep a tensor, or several by name, for later processes.

    Args:
        kind: what it is; the name of a folder.
        key: a hash of everything that it depends on.
        value: the tensor, or name -> tensor.

    Raises:
        OSError: the cache cannot be written.
    """
    tensors = {kind: value} if isinstance(value, Tensor) else value
    write_tensors(_path(kind, key), tensors, {"key": key})


def recall(kind: str, key: str, rows: int, read: Callable[[dict[str, Tensor]], Any] | None = None) -> Any:
    """Return what was kept under a key, or None.

    Args:
        kind: as `remember` was told.
        key: the same.
        rows: how many it must have.
        read: what to make of the tensors kept, by name (default: the single one); raises ValueError where
            they are not what it expects.

    Raises:
        ValueError: the file there is damaged, or holds something else than `rows` rows of this kind.
    """
    path = _path(kind, key)
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
        value = tensors.get(kind) if read is None else read(tensors)
        if metadata.get("key") != key or value is None or len(value) != rows:
            raise ValueError(f"Expected the {rows} rows of `{kind}` that its name says.")
    except ValueError as error:
        raise ValueError(f"`{path}`: {error} It can be deleted: it will be made again.") from error
    return value


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}.safetensors"
