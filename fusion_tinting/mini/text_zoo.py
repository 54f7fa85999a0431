"""What the minis of texts share: rows from a table of tasks, a tokenizer, a base, and its experts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_tinting.method.schedule import stable_seed
from fusion_tinting.mini import tiny_roberta
from fusion_tinting.mini.once import reproducible
from fusion_tinting.mini.tiny_roberta import Row, Sizes

TRAIN = 4000
"""Rows of each task that an expert learns from, and, other ones, that the base does."""


class TextTask(NamedTuple):
    """A task of texts.

    Attributes:
        row: makes one of its rows.
        names: what its labels are called; of a regression, what its whole numbers are.
        regression: whether a label is a number and no class.
    """

    row: Callable[[np.random.Generator], Row]
    names: list[str]
    regression: bool = False


Tasks = Mapping[str, TextTask]


SPLITS = {"train": range(6), "val": range(6, 8), "test": range(8, 10)}
"""Split -> its tenths of all texts: none is in two."""


def rows(tasks: Tasks, task: str, count: int, seed: int, split: str | None = None) -> list[Row]:
    """Rows of a task; other seeds, other rows. Without a split, from all texts."""
    rng = np.random.default_rng([seed, *task.encode()])
    drawn = (tasks[task].row(rng) for _ in itertools.count())
    return list(itertools.islice((row for row in drawn if split is None or is_in(split, row)), count))


def is_in(split: str, row: Row) -> bool:
    """Whether a row belongs to a split, which its texts alone tell."""
    return stable_seed(*row[:2]) % 10 in SPLITS[split]


def words(tasks: Tasks) -> list[str]:
    """Every word of the tasks' texts, and of the names of their labels."""
    texts = [text for task in tasks for row in rows(tasks, task, 3000, 0) for text in row[:2] if text]
    return sorted({word for text in [*texts, *captions(tasks)] for word in text.split()})


def captions(tasks: Tasks) -> list[str]:
    """The names of all labels, task after task."""
    return [name for task in tasks.values() for name in task.names]


def captioned(tasks: Tasks, seed: int, split: str | None = None) -> list[Row]:
    """The corpus of a base: rows of every task, each with the place of its own among `captions`."""
    places = {name: place for place, name in enumerate(captions(tasks))}
    return [
        (a, b, places[tasks[task].names[round(label)]])
        for task in tasks
        for a, b, label in rows(tasks, task, TRAIN, seed, split)
    ]


def make_models(
    folder: Path,
    tasks: Tasks,
    seed: int,
    progress: Callable[[str], None],
    sizes: Sizes = tiny_roberta.SIZES,
    corpus: Tasks | None = None,
    split: str | None = None,
) -> None:
    """Write `base/` and `experts/<task>/`, each with the tokenizer, into a folder.

    Args:
        seed: of what the models start from, and of the rows: the base's are those of `seed + 2`, the
            experts' those of `seed + 3`.
        corpus: what the base learns from; the tasks themselves where there is none.
        split: the one that all of them are from.
    """
    corpus = corpus or tasks
    with reproducible(seed):
        progress("base: a masked language model")
        tokenizer = tiny_roberta.make_tokenizer(sorted({*words(tasks), *words(corpus)}))
        told = captioned(corpus, seed + 2, split)
        base = tiny_roberta.pretrained(tokenizer, told, captions(corpus), sizes)
        _save(base, tokenizer, folder / "base")
        for name, task in tasks.items():
            progress(f"expert: {name}")
            names = None if task.regression else task.names
            data = rows(tasks, name, TRAIN, seed + 3, split)
            expert = tiny_roberta.expert(folder / "base", tokenizer, data, names, sizes)
            _save(expert, tokenizer, folder / "experts" / name)


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
