"""The rows of a task's data, in which a host has said which column is what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion_tinting.errors import unknown
from fusion_tinting.run.unlabeled import Unlabeled

NO_LABEL = -100
"""Label of a position that has none; transformers' own mark."""


class Inputs(NamedTuple):
    """A task's inputs; and their labels, one for each, which only reports look at."""

    unlabeled: Unlabeled
    labels: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """The rows of a task's data.

    Attributes:
        table: a `datasets.Dataset`, or another sequence of rows.
        where: what an error calls it.
        columns: `text`, `text_pair`, `target`, `image` or `label` -> the column that holds it.
        max_length: tokens of an input; what is longer is cut.
        folder: where the paths of images begin that are no whole paths, in a file of the user's.
        num_workers: loader processes for large data; None stands for as many as are worth starting.
    """

    table: Any
    where: str
    columns: Mapping[str, str] = field(default_factory=dict)
    max_length: int = 256
    folder: Path | None = None
    num_workers: int | None = None

    def __len__(self) -> int:
        return len(self.table)

    def column(self, key: str) -> str | None:
        """Return the name of the column for `key`; None where there is none.

        Raises:
            ValueError: a name that the table does not have.
        """
        name = self.columns.get(key)
        if name is not None and name not in self.table.column_names:
            raise unknown(f"{key} column of {self.where}", name, self.table.column_names)
        return name

    def values(self, key: str) -> list | None:
        """Return the values of the column for `key`; None where there is none. Raises as `column`."""
        name = self.column(key)
        return None if name is None else list(self.table[name])

    def texts(self, key: str) -> list[str] | None:
        """Return `values`, every one of which must be text.

        Raises:
            ValueError: no such column, or the row that holds no text.
        """
        values = self.values(key)
        for place, value in enumerate(values or ()):
            if not isinstance(value, str):
                raise ValueError(
                    f"Row {place} of {self.where} has no text in its column `{self.columns[key]}`. "
                    f"Found {value!r}."
                )
        return values

    def words(self) -> list[str] | list[list[str]]:
        """Return the texts of the column `text`: all strings, or all lists of words.

        Raises:
            ValueError: no such column, or the row that is neither or unlike the first.
        """
        values = self.values("text") or []
        kind = str if values and isinstance(values[0], str) else list
        for place, value in enumerate(values):
            if not isinstance(value, kind) or not all(isinstance(word, str) for word in value):
                raise ValueError(
                    f"Row {place} of {self.where} has no text in its column `{self.columns['text']}`: "
                    f"expected a string, or a list of words, in every row. Found {value!r}."
                )
        return values

    def tags(self, outputs: int, names: Mapping[str, int]) -> list[list[int]] | None:
        """Return the labels of each text's words, as class indices.

        Args:
            outputs: how many classes the expert's head has.
            names: class name -> index; a column may hold either.

        Raises:
            ValueError: no such column, the row whose tags are not as many as its words, or that has one
                which this head does not have.
        """
        values = self.values("label")
        if values is None:
            return None
        feature = getattr(self.table.features[self.columns["label"]], "feature", None)
        unnamed = all(name.startswith("LABEL_") for name in names)  # as transformers does by itself
        called = {} if unnamed else dict(enumerate(getattr(feature, "names", None) or ()))
        rows = []
        for place, (text, tags) in enumerate(zip(self.words(), values, strict=True)):
            given = [called.get(tag, tag) for tag in tags] if isinstance(tags, list) else []
            row = [names.get(tag, tag) for tag in given]
            if not isinstance(text, list) or len(row) != len(text) or not set(row) <= set(range(outputs)):
                raise ValueError(
                    f"Row {place} of {self.where} has the tags {tags!r} in its column "
                    f"`{self.columns['label']}`: expected one for each of the words {text!r}, from 0 to "
                    f"{outputs - 1} or one of {list(names)}."
                )
            rows.append(row)
        return rows

    def labels(self, outputs: int, names: Mapping[str, int]) -> Tensor | None:
        """Return the labels, (N,): class indices; for a head with a single output float32 values.

        Args:
            outputs: how many the expert's head has.
            names: class name -> index; a column may hold either.

        Raises:
            ValueError: no such column, or the row whose label this head does not have.
        """
        values = self.values("label")
        return None if values is None else self._indices(values, outputs, names)

    def _indices(self, values: Sequence, outputs: int, names: Mapping[str, int]) -> Tensor:
        wanted = "a number" if outputs == 1 else f"a class from 0 to {outputs - 1} or one of {list(names)}"
        indices = [names.get(value, value) if isinstance(value, str) else value for value in values]
        for place, index in enumerate(indices):
            number = isinstance(index, Real) and index == index
            if not number or (outputs > 1 and index not in range(outputs)):
                raise ValueError(
                    f"Row {place} of {self.where} has the label {values[place]!r} in its column "
                    f"`{self.columns['label']}`; its expert's head has {outputs} output(s): "
                    f"expected {wanted}."
                )
        return torch.tensor(indices, dtype=torch.float32 if outputs == 1 else torch.long)
