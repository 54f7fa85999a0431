"""Checkpoints: a run that was killed continues as if it never had been."""

import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.run.files import read_metadata, read_tensors, write_tensors
from fusion_tinting.run.unlabeled import Unlabeled

if TYPE_CHECKING:
    from fusion_tinting.method.adaptation import Adaptation

EVERY = 50
"""Iterations between checkpoints. One is a few megabytes (λ, tints, Adam's moments)."""
PARTS = ("settings", "models", "heads", "samples", "data")
"""Of a run's identity, beside the tasks' names."""


class Keeper:
    """Writes and finds the checkpoints of an adaptation; with no `run_dir` it does neither.

    As a context it also holds back Ctrl-C until the iteration under way is finished and its checkpoint
    is there (a second Ctrl-C interrupts at once).
    """

    def __init__(self, adaptation: "Adaptation", run_dir: Path | None):
        self.adaptation = adaptation
        self.path = None if run_dir is None else Path(run_dir) / "checkpoint" / "state.safetensors"
        self.interrupted = False
        self._handler = None

    def __enter__(self) -> "Keeper":
        # Signals reach the main thread only; elsewhere Ctrl-C keeps its usual meaning.
        if self.path is not None and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def resume(self) -> int:
        """Take up the checkpoint found, if any; returns the first iteration to run.

        Raises:
            ValueError: it belongs to another run; what differs is named.
        """
        if self.path is None or not self.path.is_file():
            return 0
        state, metadata = read_tensors(self.path)
        check_identity(self.path.parents[1], _run_of(self.path, metadata), self._identity())
        step = int(metadata["next_step"])
        self.adaptation.load_state(state, step)
        torch.set_num_threads(min(int(metadata["threads"]), os.cpu_count() or 1))  # same bits
        return step

    def after(self, step: int) -> None:
        """Write a checkpoint after iteration `step` if it is time; raise a held-back Ctrl-C.

        Every process calls it after the same iterations: they stop together.
        """
        if self.path is None:
            return
        processes = self.adaptation.processes
        interrupts = torch.tensor(int(self.interrupted), device=processes.device)
        stop = self.interrupted if processes.count == 1 else int(processes.sum(interrupts)) > 0
        last = step + 1 == self.adaptation.settings.steps
        if stop or last or (step + 1) % EVERY == 0:
            self.adaptation.share_tints()
            if processes.rank == 0:
                self._write(step + 1)
        if stop:
            raise KeyboardInterrupt(f"Stopped after iteration {step + 1}; `{self.path}` continues it.")

    def _write(self, next_step: int) -> None:
        metadata = {
            "run": json.dumps(self._identity()),
            "next_step": str(next_step),
            "threads": str(torch.get_num_threads()),
        }
        write_tensors(self.path, self.adaptation.state(), metadata)

    def _identity(self) -> dict:
        adaptation = self.adaptation
        return identity(adaptation.model, adaptation.settings, adaptation.unlabeled)

    def _on_interrupt(self, *_) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def identity(model: TintedModel, settings: Settings, unlabeled: Mapping[str, Unlabeled]) -> dict:
    """What must be equal for a run folder to hold the same run."""
    return {
        "tasks": model.tasks,
        "settings": {**settings.to_json(), "split": model.info.get("split")},
        "models": model.vectors.hashes,
        "heads": model.head_hashes,
        "samples": {task: len(inputs) for task, inputs in unlabeled.items()},
        "data": {task: inputs.fingerprint() for task, inputs in unlabeled.items()},
    }


def check_folder(run_dir: Path, mine: dict) -> None:
    """Refuse a run folder whose checkpoint is another run's; see `check_identity`."""
    path = run_dir / "checkpoint" / "state.safetensors"
    if path.is_file():
        check_identity(run_dir, _run_of(path, read_metadata(path)), mine)


def _run_of(path: Path, metadata: Mapping[str, str]) -> dict:
    """Whose checkpoint it is."""
    try:
        return require_identity(path, json.loads(metadata["run"]))
    except (KeyError, json.JSONDecodeError) as error:
        raise _no_identity(path) from error


def require_identity(path: Path, found: object) -> dict:
    """`found`, which a file of a run says of itself, if it is what `identity` returns.

    Raises:
        ValueError: it is not; the file is named.
    """
    parts = {"tasks": list, **dict.fromkeys(PARTS, dict)}
    if isinstance(found, dict) and all(isinstance(found.get(part), kind) for part, kind in parts.items()):
        return found
    raise _no_identity(path)


def _no_identity(path: Path) -> ValueError:
    return ValueError(f"`{path}` is damaged: it does not say whose run it is. Delete it to start anew.")


def check_identity(run_dir: Path, found: dict, mine: dict) -> None:
    """Refuse the run folder of another run.

    Raises:
        ValueError: naming each difference. Which samples are visited follows from the settings, so that
            samples and data are named only where nothing else differs.
    """
    differences = []
    if found["tasks"] != mine["tasks"]:
        differences.append(f"tasks are {found['tasks']} there and {mine['tasks']} here")
    for part in PARTS:
        if differences and part in ("samples", "data"):
            continue
        differences += [
            f"{part}.{key} is {found[part].get(key)!r} there and {mine[part].get(key)!r} here"
            for key in {**found[part], **mine[part]}
            if found[part].get(key) != mine[part].get(key)
        ]
    if differences:
        raise ValueError(
            f"`{run_dir}` holds another run: {'; '.join(differences)}. "
            "Choose another `run_dir`, or delete this one."
        )
