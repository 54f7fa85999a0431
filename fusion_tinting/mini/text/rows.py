"""Tasks of generated texts: rows of them, and what a base is taught about them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusion_tinting.method.schedule import stable_seed

Row = tuple[str, str | None, float]
"""A text, a second one or None, and a label: the number of a class, or a value to predict."""


class TextTask(NamedTuple):
    """A task of texts.

    Attributes:
        row: Draws one of its rows.
        names: Of its labels; of a regression whose texts a base learns from, of its whole numbers.
        regression: Whether a label is a number and no class.
    """

    row: Callable[[np.random.Generator], Row]
    names: list[str]
    regression: bool = False


Tasks = Mapping[str, TextTask]
"""Name -> task."""

TENTHS = {"train": range(6), "val": range(6, 8), "test": range(8, 10)}
"""Split -> its tenths of all texts: none is in two."""

# Words of both minis of texts.
THINGS = ["film", "book", "song", "play", "meal", "hotel", "phone", "game", "show", "trip"]
GOOD = ["good", "great", "fine", "lovely", "brilliant", "superb", "pleasant", "charming"]
BAD = ["bad", "awful", "poor", "dreadful", "boring", "terrible", "nasty", "clumsy"]
PEOPLE = ["child", "teacher", "pilot", "singer", "doctor", "friend", "sailor", "baker"]
ANIMALS = ["dog", "cat", "horse", "fox", "goat", "bear", "duck", "wolf"]
NAMES = ["anna", "ben", "clara", "david", "ella", "frank", "grace", "henry"]


def rows(tasks: Tasks, task: str, count: int, seed: int, split: str | None = None) -> list[Row]:
    """Return rows of a task.

    Args:
        tasks: Where the task is.
        task: Its name.
        count: Number of rows.
        seed: Another seed gives other rows.
        split: One of `TENTHS`, whose texts are taken; None: any texts.
    """
    rng = np.random.default_rng([seed, *task.encode()])
    drawn = (tasks[task].row(rng) for _ in itertools.count())
    return list(itertools.islice((row for row in drawn if split is None or is_in(split, row)), count))


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Return a word as `rng.choice` draws it, which would make an array of the words each time.

    Args:
        rng: Draws.
        words: Which.
    """
    return words[rng.integers(len(words))]


def some_of(rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    """Return several words as `rng.choice` draws them, none twice.

    Args:
        rng: Draws.
        words: Which.
        count: How many.
    """
    return [words[place] for place in rng.choice(len(words), count, replace=False)]


def is_in(split: str, row: Row) -> bool:
    """Return whether a row belongs to a split, which follows from its texts alone."""
    return stable_seed(*row[:2]) % 10 in TENTHS[split]


def words(tasks: Tasks) -> list[str]:
    """Return every word of the tasks' texts, and of the names of their labels."""
    texts = [text for task in tasks for row in rows(tasks, task, 3000, 0) for text in row[:2] if text]
    return sorted({word for text in [*texts, *captions(tasks)] for word in text.split()})


def captions(tasks: Tasks) -> list[str]:
    """Return the names of all labels, task after task."""
    return [name for task in tasks.values() for name in task.names]


def captioned(tasks: Tasks, count: int, seed: int, split: str | None = None) -> list[Row]:
    """Return the corpus of a base: rows of every task, each with the place of its own among `captions`.

    Args:
        tasks: What the base learns from.
        count: Number of rows of each.
        seed: As in `rows`.
        split: As in `rows`.
    """
    places = {name: place for place, name in enumerate(captions(tasks))}
    return [
        (a, b, places[tasks[task].names[round(label)]])
        for task in tasks
        for a, b, label in rows(tasks, task, count, seed, split)
    ]
