"""The files of a run that a recipe names: coefficients and tints, read once and checked."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fusion_tinting.errors import unknown
from fusion_tinting.run.artifact import read_rows
from fusion_tinting.run.files import read_tensors


class CoefficientFile:
    """`coefficients.safetensors` of an artifact: tensor name -> λ of every task.

    Attributes:
        tasks: in the order of the columns; from the file's own metadata.
        rows: tensor name -> (K,) float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, damaged, or with a value that is not finite.
    """

    def __init__(self, path: Path):
        self.path = path
        self.tasks, self.rows = read_rows(path)

    def value(self, name: str, task: str | None) -> float:
        """λ of one tensor and task.

        Raises:
            ValueError: a tensor or task that the file does not have.
        """
        if task is None:
            raise ValueError(f"With `coefficients` every model needs a `task`: one of {self.tasks}.")
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        if name not in self.rows:
            raise ValueError(f"`{self.path}` has no coefficients for the tensor `{name}`.")
        return float(self.rows[name][self.tasks.index(task)])


def coefficient_file(path: str) -> CoefficientFile:
    """Return the coefficients in a file, read once for as long as it does not change."""
    return _coefficient_file(path, stamp(path))


def tint_file(path: str) -> dict[str, Tensor]:
    """Return the tensors of a tint, read once for as long as the file does not change.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, damaged, or with a value that is not finite.
    """
    return _tint_file(path, stamp(path))


@lru_cache(maxsize=8)
def _coefficient_file(path: str, written: tuple) -> CoefficientFile:
    return CoefficientFile(Path(path))


@lru_cache(maxsize=2)
def _tint_file(path: str, written: tuple) -> dict[str, Tensor]:
    tensors, _ = read_tensors(Path(path))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"`{name}` in `{path}` holds NaN or infinite values.")
    return tensors


def stamp(path: str | Path) -> tuple:
    """Return what changes when a file is written anew."""
    try:
        status = Path(path).stat()
    except OSError:  # for the reader to tell
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
