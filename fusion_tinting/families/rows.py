"""The rows of a task's data, in which a host has said which column is what."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion_tinting.errors import unknown
from fusion_tinting.families.labels import HIDDEN, NO_LABEL, Outputs, unlike
from fusion_tinting.run.unlabeled import Unlabeled

log = logging.getLogger(__name__)


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
        """Return the labels of each text's words, as class indices; None where there is no label at all.

        Args:
            outputs: how many classes the expert's head has.
            names: class name -> index; a column may hold either.

        Raises:
            ValueError: no such column, the row whose tags are not as many as its words, or that has one
                which this head does not have.
        """
        values, head = self.values("label"), Outputs(outputs, names)
        if values is None or self._all_hidden(head, [tag for tags in values for tag in tags or ()]):
            return None
        called = {} if head.unnamed else dict(enumerate(self._class_names() or ()))
        rows = []
        for place, (text, tags) in enumerate(zip(self.words(), values, strict=True)):
            try:
                if not isinstance(text, list) or len(tags) != len(text):
                    raise ValueError("expected one for each of the words")
                named = [called.get(tag, tag) for tag in tags]
                rows.append([NO_LABEL if tag in HIDDEN else head.index(tag) for tag in named])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"Row {place} of {self.where} has the tags {tags!r} in its column "
                    f"`{self.columns['label']}`, for the words {text!r}: {error}."
                ) from error
        return rows

    def labels(self, outputs: int, names: Mapping[str, int], own: bool = True) -> Tensor | None:
        """Return the labels, (N,): class indices; for a head with a single output float32 values.

        Where a row has none (-1 as in GLUE's test splits, or nothing), it is `NO_LABEL`, of a value NaN.

        Args:
            outputs: how many the expert's head has.
            names: class name -> index; a column may hold either. Where the data set names its classes, they
                are found by these names, whatever their order there.
            own: whether the head has these names by itself; else names of the data that say nothing of
                them are no error.

        Raises:
            ValueError: no such column, the row whose label this head does not have, or classes of which
                nobody can tell which is which.
        """
        values, head = self.values("label"), Outputs(outputs, names)
        if values is None or self._all_hidden(head, values):
            return None
        classes = self._class_names() if outputs > 1 else None
        order = head.order(classes) if classes else None
        if classes and order is None and own:
            raise unlike("The expert's head", names, self.where, classes)
        indices = [
            head.none if hidden else self._index(head, place, value, order)
            for place, (value, hidden) in enumerate(zip(values, head.hidden(values), strict=True))
        ]
        return torch.tensor(indices, dtype=torch.float32 if outputs == 1 else torch.long)

    def several(self, outputs: int, names: Mapping[str, int]) -> Tensor | None:
        """Return several labels or values of each row, (N, outputs), float32.

        Args:
            outputs: how many the expert's head has.
            names: class name -> index; a row may hold the names of its labels, or a number for each output;
                where it has none, they are NaN.

        Raises:
            ValueError: no such column, or the row that holds something else.
        """
        values = self.values("label")
        if values is None:
            return None
        called = self._class_names()  # then a row lists the classes that it has
        rows = []
        for place, value in enumerate(values):
            given = [math.nan] * outputs if value is None else value
            if called is not None and value:
                given = [called[label] for label in value]
            if isinstance(given, list) and all(isinstance(name, str) and name in names for name in given):
                given = [float(index in {names[name] for name in given}) for index in range(outputs)]
            numbers = isinstance(given, list) and all(isinstance(each, Real) for each in given)
            if not numbers or len(given) != outputs:
                raise ValueError(
                    f"Row {place} of {self.where} has {value!r} in its column `{self.columns['label']}`: "
                    f"expected {outputs} numbers, one for each output of its expert's head, or a list of "
                    f"names among {list(names)}."
                )
            rows.append(given)
        return torch.tensor(rows, dtype=torch.float32)

    def _index(self, head: Outputs, place: int, value: Any, order: list[int] | None) -> int | float:
        """Return the output for a row's label: numbers by the order of the data's named classes."""
        try:
            return head.index(value) if order is None or isinstance(value, str) else order[value]
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"Row {place} of {self.where} has the label {value!r} in its column "
                f"`{self.columns['label']}`; its expert's head has {head.count} output(s): {error}."
            ) from error

    def _class_names(self) -> list[str] | None:
        """Return what the data set calls the classes of its labels, or of the tags in their lists."""
        feature = (getattr(self.table, "features", None) or {}).get(self.columns["label"])
        return getattr(getattr(feature, "feature", feature), "names", None)

    def _all_hidden(self, head: Outputs, labels: list) -> bool:
        """Return whether no row has a label; say how many have none."""
        hidden = sum(head.hidden(labels))
        if hidden:
            log.warning(
                f"{hidden} of {len(labels)} labels of {self.where}, in the column "
                f"`{self.columns['label']}`, are hidden (-1) or missing: those rows are scored nowhere."
            )
        return hidden == len(labels)
