"""What happened in each iteration, for each task."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_tinting.method.adaptation import FIGURES


@dataclass
class History:
    """Curves of an adaptation; `values` has shape (iterations, K, 4) in the order of `FIGURES`.

    * loss: mean over the samples kept (0 where none was: the step was skipped).
    * agreement: share of the batch on which the tinted model agrees with the expert.
    * kept: share of the batch that the sampler kept.
    * coefficient: mean over the tensors of the task's effective λ after the task's own step.

    Attributes:
        tasks: the K task names.
        values: the numbers.
    """

    tasks: list[str]
    values: Tensor

    @classmethod
    def empty(cls, tasks: list[str], steps: int) -> "History":
        """Return a history with room for all iterations.

        Args:
            tasks: the K task names.
            steps: the number of iterations.
        """
        return cls(tasks, torch.zeros(steps, len(tasks), len(FIGURES)))

    def __getattr__(self, name: str) -> Tensor:
        if name not in FIGURES:
            raise AttributeError(name)
        return self.values[..., FIGURES.index(name)]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def skipped(self) -> int:
        """Steps (of one task in one iteration) in which the sampler kept nothing."""
        return int((self.kept == 0).sum())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one dict per iteration and task, as in curves.csv."""
        for step, iteration in enumerate(self.values.tolist()):
            for task, values in zip(self.tasks, iteration, strict=True):
                yield {"step": step, "task": task, **dict(zip(FIGURES, values, strict=True))}

    def to_csv(self) -> str:
        """Return the rows as comma-separated values with a header."""
        lines = [",".join(["step", "task", *FIGURES])]
        for row in self.rows():
            numbers = (f"{row[column]:.6g}" for column in FIGURES)
            lines.append(",".join([str(row["step"]), row["task"], *numbers]))
        return "\n".join(lines) + "\n"

    @classmethod
    def from_csv(cls, text: str, tasks: list[str]) -> "History":
        """Read what `to_csv` wrote.

        Args:
            text: the file's content.
            tasks: the K task names, in the order of the rows.

        Raises:
            ValueError: what is no number.
            RuntimeError: not as many rows as there are tasks.
        """
        lines = text.split("\n")[1:-1]
        rows = [[float(value) for value in line.rsplit(",", len(FIGURES))[1:]] for line in lines]
        return cls(tasks, torch.tensor(rows).view(-1, len(tasks), len(FIGURES)))
