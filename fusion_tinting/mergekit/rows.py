"""The rows of a task's file or data set, with the columns that `data` names."""

import csv
from pathlib import Path
from typing import Any

from fusion_tinting.errors import unknown
from fusion_tinting.families.loading import reachable
from fusion_tinting.families.rows import Rows
from fusion_tinting.mergekit.config import Data, Expert

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
OPTIONS = {
    ".csv": {"keep_default_na": False, "na_values": [""]},
    ".txt": {"encoding": "utf-8-sig"},
}
"""What is read otherwise than the readers do: in CSV files `NA`, `null` and `None` are words, and a byte
order mark is no text."""
COLUMNS = ("text", "text_pair", "target", "image", "label")


def rows_of(expert: Expert) -> Rows:
    """Return the rows that an expert's `data` names.

    Args:
        expert: of a configuration.

    Raises:
        FileNotFoundError: neither a file nor a data set that can be reached.
        ValueError: a file that cannot be read, or no rows.
    """
    data, where = expert.data, f"`{expert.data.path}` (task `{expert.task}`)"
    table = _table(data, where)
    if len(table) == 0:
        raise ValueError(f"The data {where}, `{data.split}`, is empty: expected at least two rows.")
    columns = {key: name for key in COLUMNS if (name := getattr(data, key)) is not None}
    return Rows(table, where, columns, data.max_length, folder=Path(data.path).parent)


def _table(data: Data, where: str) -> Any:
    from datasets import load_dataset  # here, for it takes seconds to import
    from datasets.exceptions import DatasetGenerationError

    path = Path(data.path)
    kind = path.suffix.lower()
    if kind in READERS and not path.is_file():
        raise FileNotFoundError(f"There is no file {where}.")
    if path.is_file():
        _check_file(data, kind, path, where)
    try:
        if not path.is_file():
            return reachable(lambda name: load_dataset(name, data.name, split=data.split), data.path)
        table = load_dataset(READERS[kind], data_files=str(path), split=data.split, **OPTIONS.get(kind, {}))
    except (ValueError, DatasetGenerationError) as error:
        if "corresponds to no data" in str(error):
            return ()
        raise ValueError(f"The data {where} cannot be read: {error.__cause__ or error}") from error
    return table.filter(lambda row: bool(row["text"].strip())) if kind == ".txt" else table


def _check_file(data: Data, kind: str, path: Path, where: str) -> None:
    """Refuse a file of another kind, one that is empty, and what would be ignored or renamed in reading."""
    if kind not in READERS:
        raise unknown(f"kind of file of {where}", path.suffix, READERS)
    if path.stat().st_size == 0:
        raise ValueError(f"The data {where} is empty: expected at least two rows.")
    if data.name is not None:
        raise ValueError(f"`name: {data.name}` has no effect on a file, {where}: it is for data sets.")
    if kind == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = filter(None, csv.reader(file))
            header, first = next(lines, []), next(lines, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise ValueError(f"The data {where} has two columns `{twice[0]}`.")
        if len(first) > len(header):  # of which pandas would take the first for the row's name
            raise ValueError(
                f"The data {where} has the columns {header}, but {len(first)} values in its first row: "
                f"{first}. Put quotes around a text with a comma, and no comma at the end of a line."
            )
