"""The lock of a folder: one run at a time works in it, and the next one is told which."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from fusion_tinting.run.files import (
    alive,
    made,
    remove_unfinished,
    require_no_file,
    require_no_folder,
    require_writable,
)
from fusion_tinting.run.processes import Processes

LOCK = ".lock"
_GUARD = threading.Lock()
_OWNERS: dict[Path, tuple[int, int, dict[str, Any]]] = {}
"""Folder -> process, thread and what its lock says. The system's lock is for processes alone."""


@contextmanager
def held(folder: Path | None, processes: Processes | None = None) -> Iterator[None]:
    """Keep a folder from other runs for as long as the context lasts, and see that it can be written.

    What a killed run was writing there is removed; its lock was the system's, and went with it. A thread
    that holds the folder already may ask for it again.

    Args:
        folder: where a run will write; None for nowhere.
        processes: those of the run, of which the first holds the folder; all learn of an error.

    Raises:
        BlockingIOError: another run works there; which one is said.
        OSError: the folder cannot be written.
    """
    processes = processes or Processes()
    with ExitStack() as stack:
        trouble = None
        if folder is not None and processes.rank == 0:
            try:
                stack.enter_context(_locked(folder))
            except OSError as error:
                trouble = error
        failed = int(processes.sum(torch.tensor(int(trouble is not None), device=processes.device)))
        if trouble is not None:
            raise trouble
        if failed:
            raise OSError(f"The first process of this run cannot work in `{folder}`; it says why.")
        yield


def require_free(folder: Path, processes: Processes | None = None) -> None:
    """Refuse a folder that another run works in, before much is loaded.

    Args:
        folder: where a run will write.
        processes: those of the run.

    Raises:
        BlockingIOError: as `held`.
    """
    with held(folder if folder.is_dir() and os.access(folder, os.W_OK) else None, processes):
        pass


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    require_no_file(folder)
    folder, me = folder.resolve(), (os.getpid(), threading.get_ident())
    if folder in _OWNERS and _OWNERS[folder][:2] == me:
        yield
        return
    with _GUARD:
        if folder in _OWNERS and _OWNERS[folder][0] == me[0]:
            raise _busy(folder / LOCK, _OWNERS[folder][2])
        new = not folder.exists()
        made(folder)
        require_no_folder(folder / LOCK)
        file = _acquire(folder / LOCK)
        _OWNERS[folder] = (*me, _holder(file))
    try:
        remove_unfinished(folder)
        require_writable(folder)
        yield
    finally:
        del _OWNERS[folder]
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            if new:
                folder.rmdir()  # which does nothing where something was written
        file.close()


def _acquire(path: Path) -> TextIO:
    """Return the file of a lock, locked, with who holds it."""
    while True:
        there = path.exists()
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (as long as the lock)
        holder, others = _holder(file), False
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            others = True
        except OSError:  # a file system without locks: what the file says must do
            others = there and _may_live(holder)
        if others:
            file.close()
            raise _busy(path, holder)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # of a run that has ended just now
    file.seek(0)
    file.truncate()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
    file.flush()
    return file


def _holder(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        content = json.loads(file.read())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _may_live(holder: dict[str, Any]) -> bool:
    """Return whether a holder is not known to be dead; of other machines nothing is known."""
    here = holder.get("host") == socket.gethostname()
    return not (here and isinstance(holder.get("pid"), int) and not alive(holder["pid"]))


def _busy(path: Path, holder: dict[str, Any]) -> BlockingIOError:
    who = "process {pid} on {host}, since {since}".format_map(
        {"pid": "unknown", "host": "an unknown host", "since": "an unknown time", **holder}
    )
    return BlockingIOError(
        f"`{path.parent}` is in use by another run: {who}. Wait until that has ended, or choose another "
        f"folder. If you know that it has ended, delete `{path}`."
    )
