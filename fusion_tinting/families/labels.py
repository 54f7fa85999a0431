"""What labels mean: which of a head's outputs a number or a name in a data set stands for."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

NO_LABEL = -100
"""Label of what has none; transformers' own mark. Of a head with a single output it is NaN."""

EMPTY = (None, "")
HIDDEN = (*EMPTY, -1, NO_LABEL, "-1")
"""What data sets write where there is no label; -1 is GLUE's, in its test splits."""


class Outputs:
    """The outputs of a head: how many, and what they are called.

    Args:
        count: one is a number, more are classes.
        names: name -> index, such as `label2id` of transformers.
    """

    def __init__(self, count: int, names: Mapping[str, int]):
        self.count, self.names = count, {str(name): int(place) for name, place in names.items()}
        self._alike: dict[str, set[int]] = {}
        for name, place in self.names.items():
            self._alike.setdefault(_plain(name), set()).add(place)

    @property
    def unnamed(self) -> bool:
        """Whether the names say nothing: `LABEL_0`, as transformers writes by itself, or `0`."""
        return all(_plain(name) in (f"label {place}", str(place)) for name, place in self.names.items())

    def hidden(self, labels: Sequence[Any]) -> list[bool]:
        """Return which labels are none; of values -1 may be one, unless all are.

        Args:
            labels: of all rows.
        """
        marks = [label in HIDDEN or label != label for label in labels]
        if self.count > 1 or all(marks):
            return marks
        return [label in EMPTY or label != label for label in labels]

    @property
    def none(self) -> int | float:
        """What stands for no label."""
        return NO_LABEL if self.count > 1 else float("nan")

    def index(self, label: Any) -> int | float:
        """Return the output that a label stands for; of a single output the label's value.

        A name counts as it is written, or else however it is written if one output alone is called so.

        Args:
            label: a number or a name.

        Raises:
            ValueError: no output of this head, or one of several.
        """
        if self.count == 1:
            return _number(label)
        return self._named(label) if isinstance(label, str) else self._numbered(label)

    def order(self, names: Sequence[str]) -> list[int] | None:
        """Return the output for each class of a data set; None where the names do not tell.

        Args:
            names: of the data set's classes, in order; some of the head's are enough.
        """
        if self.unnamed and self.count == len(names):
            return list(range(len(names)))
        order = [self._called(name) for name in names]
        return None if None in order or len(set(order)) < len(order) else order

    def _called(self, name: str) -> int | None:
        """Return the only output of a name, as it is written, or else however it is written."""
        places = self._alike.get(_plain(name), set())
        return self.names.get(name, min(places) if len(places) == 1 else None)

    def _named(self, label: str) -> int:
        if (place := self._called(label)) is not None:
            return place
        digits = _plain(label).removeprefix("label ")
        if not digits.isdecimal():
            _refuse(self.wanted)
        return self._numbered(int(digits))

    def _numbered(self, label: Any) -> int:
        if not isinstance(label, Real) or label not in range(self.count):
            _refuse(self.wanted)
        place = int(label)
        if self.names.get(str(place), place) != place:
            _refuse(
                f"it may be output {place}, or the output {self.names[str(place)]}, which is called so; "
                "write labels in quotes, as the classes' names"
            )
        return place

    @property
    def wanted(self) -> str:
        """What a label must be."""
        return f"expected a class from 0 to {self.count - 1} or one of {list(self.names)}"


def names_of(config: Any) -> dict[str, int]:
    """Return class name -> output of a classifier by `label2id`, or by `id2label` where that names none.

    Args:
        config: of a classifier of transformers.
    """
    told = config.label2id or {}
    return (
        dict(told) if not Outputs(len(told), told).unnamed else {n: i for i, n in config.id2label.items()}
    )


def is_labeled(labels: Tensor) -> Tensor:
    """Return which entries of labels are labels.

    Args:
        labels: indices, or values of heads with a single output.
    """
    return ~labels.isnan() if labels.is_floating_point() else labels != NO_LABEL


def unlike(model: str, names: Mapping[str, int], where: str, classes: Sequence[str]) -> ValueError:
    """Return (not raise) the error for classes of which nobody can tell which is which.

    Args:
        model: what the error calls the model.
        names: its `label2id`.
        where: what the error calls the data.
        classes: as the data set names them, in order.
    """
    return ValueError(
        f"{model} calls its classes {sorted(names, key=names.get)}; {where} calls them {list(classes)}: "
        "which is which? Say it with `label2id`, data set's name -> the model's output: in the model's "
        "config.json, or in FusionBench beside the model's path. Or name no labels."
    )


def _plain(name: str) -> str:
    """Return a name however it is written: `Not_Equivalent` and `not equivalent` are one."""
    return " ".join(str(name).casefold().replace("_", " ").replace("-", " ").split())


def _number(label: Any) -> float:
    try:
        return float(label)
    except (TypeError, ValueError):
        return _refuse("expected a number")


def _refuse(wanted: str) -> Any:
    raise ValueError(wanted)
