"""Building something into the cache folder once, whoever asks and however often it is interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fusion_tinting.cache import cache_folder

UNFINISHED = ".unfinished"
"""Ends the names of folders that are not complete yet."""


def built_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` among the cached minis, made first where it is not there.

    It appears only when complete. A second builder waits for the first; what an interrupted `make` has
    left is there when it is called again.

    Args:
        name: of the folder; must tell everything that its content depends on.
        make: fills a folder. Folders in it whose names end in `UNFINISHED` are removed afterwards.
    """
    folder = cache_folder().absolute() / "mini" / name
    if folder.exists():
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():  # else another process has built it while we waited
            unfinished = folder.with_name(folder.name + UNFINISHED)
            unfinished.mkdir(parents=True, exist_ok=True)
            make(unfinished)
            for left_over in list(unfinished.rglob("*" + UNFINISHED)):
                shutil.rmtree(left_over)
            os.rename(unfinished, folder)
    return folder
