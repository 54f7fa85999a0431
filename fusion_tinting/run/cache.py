"""A cache on disk of results that can be computed again, by a hash of what they were computed from.

It is never in the way: a file that is damaged is computed again, and a folder that cannot be written is a
warning. It holds at most FUSION_TINTING_CACHE_SIZE gigabytes (10 unless that is set); what was not used for
the longest time goes first. FUSION_TINTING_CACHE=off turns it off.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion_tinting.run.files import read_tensors, remove_unfinished, write_tensors

KINDS = ("predictions", "zero_shot_heads")
"""What is kept, each in a folder of its own."""
OFF = "off"
GIGABYTES = 10.0


def cache_folder() -> Path:
    """Return FUSION_TINTING_CACHE, or `fusion_tinting` in the user's cache folder (XDG_CACHE_HOME)."""
    if (named := os.environ.get("FUSION_TINTING_CACHE")) and named != OFF:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fusion_tinting"


def remember(kind: str, key: str, value: Tensor | Mapping[str, Tensor]) -> None:
    """Keep a tensor, or several by name, for later processes; warn where that is not possible.

    Args:
        kind: what it is, one of `KINDS`.
        key: a hash of everything that it depends on.
        value: the tensor, or name -> tensor.
    """
    if _is_off():
        return
    tensors = {kind: value} if isinstance(value, Tensor) else value
    try:
        write_tensors(_path(kind, key), tensors, {"key": key})
        _make_room()
    except OSError as error:
        warnings.warn(
            f"The cache cannot be used, so that a later run computes this again: {error} "
            f"FUSION_TINTING_CACHE names its folder; `{OFF}` turns it off.",
            stacklevel=2,
        )


def recall(kind: str, key: str, rows: int, read: Callable[[dict[str, Tensor]], Any] | None = None) -> Any:
    """Return what was kept under a key, or None; also where the file is damaged, with a warning.

    Args:
        kind: as `remember` was told.
        key: the same.
        rows: how many it must have.
        read: what to make of the tensors kept, by name (default: the single one); raises ValueError where
            they are not what it expects.

    Raises:
        ValueError: FUSION_TINTING_CACHE_SIZE is no number.
    """
    path, _ = _path(kind, key), _most_bytes()
    if _is_off() or not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path, checked=True)
        value = tensors.get(kind) if read is None else read(tensors)
        if metadata.get("key") != key or value is None or len(value) != rows:
            raise ValueError(f"`{path}` is damaged: it holds something else than its name says.")
    except (ValueError, OSError, RuntimeError) as error:
        warnings.warn(f"{error} What is in the cache there is computed again.", stacklevel=2)
        return None
    with suppress(OSError):
        os.utime(path)  # used just now
    return value


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}.safetensors"


def _is_off() -> bool:
    return os.environ.get("FUSION_TINTING_CACHE") == OFF


def _most_bytes() -> float:
    wanted = os.environ.get("FUSION_TINTING_CACHE_SIZE") or GIGABYTES
    try:
        size = float(wanted)
    except ValueError:
        size = -1.0
    if not size >= 0:
        raise ValueError(f"FUSION_TINTING_CACHE_SIZE must be a number of gigabytes. Found {wanted!r}.")
    return size * 1e9


def _make_room() -> None:
    """Remove what was not used for the longest time, and what killed processes were writing."""
    for kind in KINDS:
        remove_unfinished(cache_folder() / kind, of_the_dead=True)
    size = 0
    for path, status in sorted(_kept(), key=lambda entry: -entry[1].st_mtime_ns):
        size += status.st_size
        if size > _most_bytes():
            path.unlink(missing_ok=True)


def _kept() -> Iterator[tuple[Path, os.stat_result]]:
    """Yield our own files in the cache, and nothing else that a user may have there."""
    for path in (path for kind in KINDS for path in (cache_folder() / kind).glob("*.safetensors")):
        if re.fullmatch("[0-9a-f]{32,64}", path.stem):
            with suppress(OSError):  # another process has made room
                yield path, path.stat()
