"""The rows of a task's file or data set: what every family reads its inputs from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fusion_tinting.errors import unknown
from fusion_tinting.families.texts import labels_of
from fusion_tinting.mergekit.config import Data, Expert
from fusion_tinting.run.unlabeled import Unlabeled

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


class Inputs(NamedTuple):
    """A task's inputs; and their labels, one for each, which only the report looks at."""

    unlabeled: Unlabeled
    labels: Tensor | None = None


class Rows:
    """The rows that an expert's `data` names.

    Attributes:
        table: a `datasets.Dataset`.

    Raises:
        FileNotFoundError: neither a file nor a data set that can be reached.
        ValueError: a file that cannot be read, or no rows.
    """

    def __init__(self, expert: Expert):
        self.task, self.data = expert.task, expert.data
        self.where = f"`{expert.data.path}` (task `{expert.task}`)"
        self.table = _table(expert.data, self.where)
        if len(self.table) == 0:
            raise ValueError(f"The data {self.where} is empty: expected at least two rows.")

    def column(self, key: str) -> list | None:
        """The values of the column that `data.<key>` names; None where it names none.

        Raises:
            ValueError: no such column.
        """
        name = getattr(self.data, key)
        if name is None:
            return None
        if name not in self.table.column_names:
            raise unknown(f"{key} column of {self.where}", name, self.table.column_names)
        return list(self.table[name])

    def texts(self, key: str) -> list[str] | None:
        """As `column`, of which every value must be text."""
        values = self.column(key)
        for place, value in enumerate(values or ()):
            if not isinstance(value, str):
                raise ValueError(
                    f"Row {place} of {self.where} has no text in its column `{getattr(self.data, key)}`. "
                    f"Found {value!r}."
                )
        return values

    def labels(self, outputs: int, names: Mapping[str, int]) -> Tensor | None:
        """The labels, (N,): class indices; of a head with a single output float32 values.

        Args:
            outputs: how many the expert's head has.
            names: class name -> index; a column may hold either.

        Raises:
            ValueError: no such column, or a value that is no label of this head.
        """
        values = self.column("label")
        if values is None:
            return None
        return labels_of(values, outputs, names, self.where, self.data.label)


def _table(data: Data, where: str):
    from datasets import load_dataset  # here, for it takes seconds to import
    from datasets.exceptions import DatasetGenerationError

    path = Path(data.path)
    if path.suffix in READERS and not path.is_file():
        raise FileNotFoundError(f"There is no file {where}.")
    if path.is_file() and path.suffix not in READERS:
        raise unknown(f"kind of file of {where}", path.suffix, READERS)
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"The data {where} is empty: expected at least two rows.")
    try:
        if path.is_file():
            return load_dataset(READERS[path.suffix], data_files=str(path), split=data.split)
        return reachable(lambda name: load_dataset(name, data.name, split=data.split), data.path)
    except (ValueError, DatasetGenerationError) as error:
        raise ValueError(f"The data {where} cannot be read: {error.__cause__ or error}") from error


def reachable(load: Callable[[str], Any], name: str) -> Any:
    """`load(name)`, whose failure names what was asked for.

    Raises:
        FileNotFoundError: it is neither here nor on a hub that answers.
    """
    try:
        return load(name)
    except OSError as error:
        raise FileNotFoundError(f"`{name}` is neither here nor can it be reached: {error}") from error
