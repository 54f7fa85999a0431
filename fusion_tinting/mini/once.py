"""What all minis share: building into the cache folder once, reproducibly, and finding what was built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion_tinting.run.cache import cache_folder

UNFINISHED = ".unfinished"
"""Ends the names of folders that are not complete yet."""

ZOO_OPTIONS = {"zoo_seed": "zoo_seed", "recipe": "recipe"}
"""What the minis' pools add to the stock ones; named so for FusionBench's own way of saving a pool."""


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


def require_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        ValueError: anything but a whole number from 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"`seed` should be a whole number from 0. Found {seed!r}.")


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """torch with a seed of its own and one thread: more do not help models this small, and would make them
    differ. Afterwards the caller's threads and random state are as they were."""
    import torch  # here, for it takes a second to import, and a zoo that is there needs none

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def inside(folder: Path, name):
    """The path of a model inside a zoo; whatever names no folder there stays as it is."""
    return str(folder / name) if isinstance(name, str) and (folder / name).is_dir() else name
