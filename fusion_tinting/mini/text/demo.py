"""Four small tasks of texts to show `mergekit-tint` on.

No single word gives a label away: *review*, are most of three opinions good (2 labels); *doer*, does a
person or an animal act (2); *topic*, what most words are about (5); *compare*, is the first number the
larger, the smaller or the same (3 labels, a pair of texts).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion_tinting.mini.recipe import Build, Part
from fusion_tinting.mini.text.roberta import TextRecipe
from fusion_tinting.mini.text.rows import (
    ANIMALS,
    BAD,
    GOOD,
    NAMES,
    PEOPLE,
    THINGS,
    Row,
    TextTask,
    one_of,
    rows,
    some_of,
)
from fusion_tinting.mini.training import Advance
from fusion_tinting.run.files import write_text

DID = ["chased", "followed", "saw", "heard", "met", "helped"]
STARTS = ["the", "yesterday the", "in the garden the", "they say that the"]
TOPICS = [
    ["goal", "team", "match", "coach", "race", "player", "stadium", "score"],
    ["bank", "loan", "market", "price", "trade", "tax", "profit", "budget"],
    ["rain", "storm", "cloud", "wind", "snow", "sun", "frost", "thunder"],
    ["bread", "soup", "cheese", "apple", "kitchen", "spice", "sauce", "cake"],
    ["train", "ticket", "airport", "road", "journey", "map", "luggage", "bridge"],
]
NUMBERS = ["one", "two", "three", "four", "five", "six"]
ITEMS = ["coins", "stamps", "cards", "pens"]


def review(rng: np.random.Generator) -> Row:
    """Draw `the film was good and the meal was poor but the trip was fine` -> good (1)."""
    label, usual = int(rng.integers(2)), int(rng.integers(2, 4))
    good = rng.permutation([label] * usual + [1 - label] * (3 - usual))
    things = some_of(rng, THINGS, 3)
    opinions = [
        f"the {thing} was {one_of(rng, GOOD if g else BAD)}" for thing, g in zip(things, good, strict=True)
    ]
    return f"{opinions[0]} and {opinions[1]} but {opinions[2]}", None, label


def doer(rng: np.random.Generator) -> Row:
    """Draw `yesterday the dog chased the pilot` -> an animal acts (1)."""
    label = int(rng.integers(2))
    acts, bears = (ANIMALS, PEOPLE) if label else (PEOPLE, ANIMALS)
    text = f"{one_of(rng, STARTS)} {one_of(rng, acts)} {one_of(rng, DID)} the {one_of(rng, bears)}"
    return text, None, label


def topic(rng: np.random.Generator) -> Row:
    """Draw eight words, of which six or seven are of one topic."""
    label, count = int(rng.integers(5)), int(rng.integers(6, 8))
    others = rng.permutation([other for other in range(5) if other != label] * 2)
    words = [one_of(rng, TOPICS[t]) for t in [label] * count + list(others[: 8 - count])]
    return " ".join(rng.permutation(words)), None, label


def compare(rng: np.random.Generator) -> Row:
    """Draw `anna has six coins`, `ben has three coins` -> more (0), fewer (1), as many (2)."""
    label, (a, b) = int(rng.integers(3)), some_of(rng, NAMES, 2)
    small, large = sorted(rng.choice(len(NUMBERS), 2, replace=False))
    first, second = ((large, small), (small, large), (small, small))[label]
    item = one_of(rng, ITEMS)
    return f"{a} has {NUMBERS[first]} {item}", f"{b} has {NUMBERS[second]} {item}", label


TASKS = {
    "review": TextTask(review, ["disliked", "liked"]),
    "doer": TextTask(doer, ["person", "animal"]),
    "topic": TextTask(topic, ["sport", "money", "weather", "food", "travel"]),
    "compare": TextTask(compare, ["more", "fewer", "equal"]),
}
"""Name -> task."""


@dataclass(frozen=True, kw_only=True)
class DemoRecipe(TextRecipe):
    """A base, experts, and unlabeled texts in files, with labels to compare with."""

    tasks: tuple[str, ...] = tuple(TASKS)

    table = TASKS
    corpus = TASKS
    split = None

    def data(self) -> list[Part]:
        """Return the part that is the texts: `data/<task>.jsonl`."""
        return [Part("data", 1, self._write_data)]

    def _write_data(self, build: Build, folder: Path, advance: Advance) -> None:
        for task in self.tasks:
            lines = []
            for text, second, label in rows(TASKS, task, self.val, 100 * build.seed + 1):
                row = {"text": text, "second": second, "label": label}
                lines.append(json.dumps({key: value for key, value in row.items() if value is not None}))
            write_text(folder / f"{task}.jsonl", "\n".join(lines) + "\n")
        advance(1)


RECIPE = DemoRecipe(
    name="roberta-demo_4", train=2000, val=800, pretrain_steps=110, expert_steps=80, minutes="half a minute"
)
