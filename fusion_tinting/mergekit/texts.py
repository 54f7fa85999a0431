"""The texts that a configuration names, and the tokenizer that its models share."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from fusion_tinting.errors import unknown
from fusion_tinting.mergekit.config import Config, Data

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True)
class Texts:
    """Rows of a file: one or two texts each, and labels where a column is named."""

    texts: list[str]
    pairs: list[str] | None
    labels: list | None


def read(data: Data, task: str) -> Texts:
    """The columns that a task's data names.

    Raises:
        FileNotFoundError: neither a file nor a data set that can be reached.
        ValueError: no rows, a column that does not exist, or one that holds no text.
    """
    rows = _rows(data)
    if len(rows) == 0:
        raise ValueError(f"The data of `{task}`, `{data.path}`, is empty.")
    columns = {}
    for what in ("text", "text_pair", "label"):
        name = getattr(data, what)
        if name is None:
            columns[what] = None
        elif name not in rows.column_names:
            raise unknown(f"{what} column of `{data.path}` (task `{task}`)", name, rows.column_names)
        else:
            columns[what] = list(rows[name])
    for what in ("text", "text_pair"):
        bad = [i for i, value in enumerate(columns[what] or ()) if not isinstance(value, str)]
        if bad:
            raise ValueError(
                f"Row {bad[0]} of `{data.path}` (task `{task}`) has no text in its column "
                f"`{getattr(data, what)}`. Found {columns[what][bad[0]]!r}."
            )
    return Texts(columns["text"], columns["text_pair"], columns["label"])


def _rows(data: Data):
    from datasets import load_dataset

    path, word = Path(data.path), data.split if isinstance(data.split, str) else "train"
    if path.suffix in READERS and not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    if not path.is_file():
        return reachable(lambda name: load_dataset(name, data.name, split=word), data.path)
    if path.stat().st_size == 0:
        return load_dataset("text", data_files=str(path), split="train")
    if path.suffix not in READERS:
        raise unknown(f"kind of file of `{path}`", path.suffix, READERS)
    return load_dataset(READERS[path.suffix], data_files=str(path), split="train")


def reachable(load: Callable[[str], Any], name: str) -> Any:
    """`load(name)`, whose failure names what was asked for."""
    try:
        return load(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"`{name}` is neither here nor can it be reached: {error}") from error


def shared_tokenizer(config: Config):
    """The tokenizer of the first expert.

    Raises:
        FileNotFoundError: an expert without tokenizer.
        ValueError: experts whose vocabularies differ.
    """
    found = {e.task: reachable(AutoTokenizer.from_pretrained, e.model) for e in config.experts}
    first, *others = found
    vocabulary = found[first].get_vocab()
    for task in others:
        if found[task].get_vocab() != vocabulary:
            raise ValueError(
                f"The vocabulary of the expert `{task}` differs from that of `{first}`: "
                f"{len(found[task].get_vocab())} and {len(vocabulary)} tokens. Models that read text "
                "differently cannot be merged."
            )
    tokenizer = found[first]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def digest(items: list) -> str:
    """Hash of tokenised inputs."""
    return hashlib.sha256(json.dumps(items, default=torch.Tensor.tolist).encode()).hexdigest()
