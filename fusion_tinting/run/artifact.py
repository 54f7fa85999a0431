"""The artifact folder that a run leaves behind, readable without this package.

tinting.json              the manifest: settings, tasks in order, content hashes, versions, cost; and
                          the sha256 of every file beside it that a run is loaded from
coefficients.safetensors  merged tensor name -> (K,) float32, the effective λ
tints/<task>.safetensors  the tinted layer of that task
curves.csv                loss, agreement, share kept and mean λ by iteration and task

Beside them stand `checkpoint/`, pictures that the hosts draw, and what a host adds (recipes, heads). This
module knows files alone; `TintedModel` turns itself into an `Artifact` and back.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fusion_tinting.errors import abbreviate
from fusion_tinting.run.files import (
    file_name,
    possibly,
    read_json,
    read_tensors,
    sha256,
    write_record,
    write_tensors,
    write_text,
)
from fusion_tinting.run.history import History
from fusion_tinting.run.manifest import MANIFEST, Manifest, check_file

COEFFICIENTS = "coefficients.safetensors"
CURVES = "curves.csv"
TINTS = "tints"


@dataclass(frozen=True)
class Artifact:
    """What is in the folder; tensors go by their names on disk.

    Attributes:
        manifest: what the run says of itself.
        coefficients: merged tensor -> (K,), the effective λ.
        tints: task -> tensor -> its value; empty without a tint.
        history: the curves; None if there are none.
    """

    manifest: Manifest
    coefficients: Mapping[str, Tensor]
    tints: Mapping[str, Mapping[str, Tensor]]
    history: History | None

    def write(self, run_dir: Path) -> None:
        """Write every file; the manifest last, so that it vouches for the rest.

        Curves for which there is no room are left out, with a warning.

        Args:
            run_dir: the folder.

        Raises:
            OSError: no room.
        """
        for path in (run_dir / MANIFEST, *_tints_of_earlier(run_dir)):
            path.unlink(missing_ok=True)
        columns = {"format": "pt", "tasks": json.dumps(self.manifest.tasks)}
        write_tensors(run_dir / COEFFICIENTS, self.coefficients, columns)
        for task, tensors in self.tints.items():
            write_tensors(tint_path(run_dir, task), tensors, {"format": "pt"})
        written = [run_dir / COEFFICIENTS, *(tint_path(run_dir, task) for task in self.tints)]
        (run_dir / CURVES).unlink(missing_ok=True)
        if self.history is not None and possibly(write_text, run_dir / CURVES, self.history.to_csv()):
            written.append(run_dir / CURVES)
        digests = {path.relative_to(run_dir).as_posix(): sha256(path) for path in written}
        write_record(run_dir / MANIFEST, replace(self.manifest, files=digests).to_json())

    @classmethod
    def read(cls, run_dir: Path, manifest: Manifest) -> "Artifact":
        """Read the files of a finished run.

        Args:
            run_dir: the folder.
            manifest: of the folder.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a file that is damaged, or does not fit the manifest.
        """
        tasks = manifest.tasks
        columns, coefficients = read_rows(run_dir / COEFFICIENTS)
        if columns != tasks:
            raise ValueError(
                f"`{run_dir / COEFFICIENTS}` is of the tasks {columns}; the run's are {tasks}."
            )
        tinted = tasks if manifest.layer is not None else []
        tints = {task: read_tensors(tint_path(run_dir, task))[0] for task in tinted}
        curves = run_dir / CURVES
        history = _read_curves(curves, tasks, manifest.steps) if curves.is_file() else None
        return cls(manifest, coefficients, tints, history)


def tint_path(run_dir: Path, task: str) -> Path:
    """Return the file of a task's tint, whatever characters the task's name has.

    Args:
        run_dir: the folder.
        task: its name.
    """
    return run_dir / TINTS / f"{file_name(task)}.safetensors"


def _tints_of_earlier(run_dir: Path) -> list[Path]:
    """Return the tints of the run that is in a folder; what else is there is the user's."""
    with suppress(ValueError, KeyError, TypeError, OSError):
        return [tint_path(run_dir, task) for task in read_json(run_dir / MANIFEST)["tasks"]]
    return []


def read_coefficients(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """Read λ: the tasks in the order of the columns, and tensor name -> (K,).

    Args:
        path: of `coefficients.safetensors`, or of the folder that holds it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind or run, damaged, or with a value that is not finite.
    """
    path = path / COEFFICIENTS if path.is_dir() else path
    tasks, rows = read_rows(path)
    beside = path.with_name(MANIFEST)
    written = read_json(beside).get("files", {}) if beside.is_file() else {}
    if path.name in written:
        check_file(path, written[path.name])
    return tasks, rows


def read_rows(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """Read λ as `read_coefficients` does, without asking the run beside the file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, damaged, or with a value that is not finite.
    """
    rows, metadata = read_tensors(path)
    try:
        tasks: list[str] = json.loads(metadata.get("tasks", "null")) or _tasks_beside(path)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{path}` is damaged: the names of its tasks are no JSON.") from error
    check_rows(path, rows, tasks)
    return tasks, rows


def check_rows(path: Path, rows: Mapping[str, Tensor], tasks: list[str]) -> None:
    """Refuse coefficients that are not one finite number for each task.

    Args:
        path: of their file, for the error.
        rows: tensor name -> (K,).
        tasks: the K task names.

    Raises:
        ValueError: naming the tensor.
    """
    for name, row in rows.items():
        if row.shape != (len(tasks),) or not torch.isfinite(row).all():
            raise ValueError(
                f"`{name}` in `{path}` must hold {len(tasks)} finite numbers, one for each task "
                f"of {tasks}. Found shape {tuple(row.shape)}: {row.flatten()[:8].tolist()}."
            )


def check_names(path: Path, wanted: list[str], stored: Mapping[str, Tensor]) -> None:
    """Refuse a file whose tensors are not those that the models have.

    Args:
        path: of the file, for the error.
        wanted: names of the tensors that there must be.
        stored: the tensors in the file, by name.

    Raises:
        ValueError: naming tensors that are missing or additional.
    """
    missing = [name for name in wanted if name not in stored]
    extra = [name for name in stored if name not in wanted]
    if missing or extra:
        raise ValueError(
            f"`{path}` does not fit these models: tensors missing {abbreviate(missing)}, not theirs "
            f"{abbreviate(extra)}."
        )


def _tasks_beside(path: Path) -> list[str]:
    manifest = path.with_name(MANIFEST)
    if not manifest.is_file():
        raise ValueError(
            f"`{path}` does not say which task each column belongs to, nor is `{MANIFEST}` beside it. "
            "Expected the `coefficients.safetensors` of a run."
        )
    tasks: list[str] = read_json(manifest)["tasks"]
    return tasks


def _read_curves(path: Path, tasks: list[str], steps: int) -> History:
    history = None
    with suppress(ValueError, RuntimeError):  # no text, no numbers, or not as many as there are tasks
        history = History.from_csv(path.read_text(encoding="utf-8"), tasks)
    if history is None or len(history) != steps:
        raise ValueError(
            f"`{path}` is cut short or damaged: expected {steps} iterations of {len(tasks)} tasks. "
            "Delete it to load the run without its curves."
        )
    return history
