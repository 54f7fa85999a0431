"""Checkpoints: a run that was killed continues as if it had not been."""

import json
import mmap
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fusion_tinting.run.cache import cache_folder
from fusion_tinting.run.files import read_tensors, write_tensors
from fusion_tinting.run.identity import Identity

EVERY = 50
"""Iterations between checkpoints. One holds λ, the tints and Adam's moments: three times the tints' size,
a few megabytes for heads."""
ANEW = "Delete it to start anew."


def checkpoint_path(run_dir: Path) -> Path:
    """Return the file of the checkpoint in a run folder.

    Args:
        run_dir: the folder.
    """
    return run_dir / "checkpoint" / "state.safetensors"


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Identity, int, int]:
    """Return a checkpoint: its state, whose it is, the next iteration, and the number of threads.

    Args:
        path: of the file.

    Raises:
        ValueError: a damaged file.
    """
    try:
        state, metadata = read_tensors(path)
        identity = Identity.from_json(json.loads(metadata["run"]), path)
        return state, identity, int(metadata["next_step"]), int(metadata["threads"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"`{path}` is damaged: it does not say whose run it is. {ANEW}") from error
    except ValueError as error:
        raise ValueError(str(error) if ANEW in str(error) else f"{error} {ANEW}") from error


def write_checkpoint(path: Path, state: Mapping[str, Tensor], identity: Identity, next_step: int) -> None:
    """Write a checkpoint.

    Args:
        path: of the file.
        state: name -> tensor.
        identity: whose it is.
        next_step: the iteration to go on with.

    Raises:
        OSError: no room.
    """
    metadata = {
        "run": json.dumps(identity.to_json()),
        "next_step": str(next_step),
        "threads": str(torch.get_num_threads()),
    }
    write_tensors(path, state, metadata)


def set_aside(tensor: Tensor) -> Tensor:
    """Return a tensor in a nameless file of the cache folder, until it is written; in memory without room.

    Tints and moments that several processes share are whole nowhere else, and three times a tint's size.

    Args:
        tensor: on the CPU.
    """
    if not tensor.numel():
        return tensor
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0)
    except OSError:
        return tensor
    return torch.frombuffer(mapped, dtype=tensor.dtype).view(tensor.shape)


def check_folder(run_dir: Path, identity: Identity) -> None:
    """Refuse a run folder whose checkpoint is another run's.

    Args:
        run_dir: the folder.
        identity: of the run that wants to go on there.

    Raises:
        ValueError: naming what differs, or the damaged file.
    """
    path = checkpoint_path(run_dir)
    if path.is_file():
        identity.require_same(read_checkpoint(path)[1], run_dir)


def use_threads(count: int) -> None:
    """Compute with as many threads as the checkpoint was written with: the same bits.

    Args:
        count: of threads; never more than there are cores.
    """
    torch.set_num_threads(min(count, os.cpu_count() or 1))


class HeldInterrupt:
    """Holds back Ctrl-C, SIGTERM and SIGHUP until a checkpoint is there: an iteration, on a GPU up to ten.

    Used as a context; a second one interrupts at once. Signals reach the main thread only: elsewhere, where
    nothing is written, and where they are ignored, they keep their usual meaning.

    Args:
        holds: whether to.

    Attributes:
        pressed: the signal that has come; None before.
    """

    def __init__(self, holds: bool):
        self.pressed: int | None = None
        self._holds = holds and threading.current_thread() is threading.main_thread()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "HeldInterrupt":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if self._holds else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def end(self, message: str, alone: bool = True) -> None:
        """End as the signal would have: or do what the user has set for it, and go on if that does not end.

        Args:
            message: what to say.
            alone: whether no other process must end too.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after another signal, with the status that a shell gives it.
        """
        number, self.pressed = self.pressed or signal.SIGINT, None
        handler = self._handlers.get(number)
        if alone and callable(handler) and handler is not signal.default_int_handler:
            handler(number, None)
        elif number != signal.SIGINT:
            with suppress(OSError, ValueError, AttributeError):  # a terminal that was closed
                print(message, file=sys.stderr, flush=True)
            raise SystemExit(128 + number)
        else:
            raise KeyboardInterrupt(message)

    def _press(self, number: int, _: FrameType | None) -> None:
        if self.pressed is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.pressed = number
