"""The rows of a task's file or data set, with the columns that `data` names."""

from pathlib import Path
from typing import Any

from fusion_tinting.errors import unknown
from fusion_tinting.families.loading import reachable
from fusion_tinting.families.rows import Rows
from fusion_tinting.mergekit.config import Data, Expert

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
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
        raise ValueError(f"The data {where} is empty: expected at least two rows.")
    columns = {key: name for key in COLUMNS if (name := getattr(data, key)) is not None}
    return Rows(table, where, columns, data.max_length, folder=Path(data.path).parent)


def _table(data: Data, where: str) -> Any:
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
