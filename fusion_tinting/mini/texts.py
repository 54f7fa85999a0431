"""Four small text tasks, a tiny RoBERTa and its experts, made on the spot to show `mergekit-tint` on.

    python -m fusion_tinting.mini.texts DEMO
    mergekit-tint learn DEMO/config.yml DEMO/run

No task can be told from a single word: *review*, are most of three opinions good (2 labels); *doer*, does a
person or an animal act (2); *topic*, what most words are about (5); *compare*, is the first number the
larger, the smaller or the same (3 labels, a pair of texts).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusion_tinting.mini.text_zoo import TextTask, make_models, rows
from fusion_tinting.mini.tiny_roberta import Row
from fusion_tinting.run.files import write_text

UNLABELLED = 1600

THINGS = ["film", "book", "song", "play", "meal", "hotel", "phone", "game", "show", "trip"]
GOOD = ["good", "great", "fine", "lovely", "brilliant", "superb", "pleasant", "charming"]
BAD = ["bad", "awful", "poor", "dreadful", "boring", "terrible", "nasty", "clumsy"]
PEOPLE = ["child", "teacher", "pilot", "singer", "doctor", "friend", "sailor", "baker"]
ANIMALS = ["dog", "cat", "horse", "fox", "goat", "bear", "duck", "wolf"]
DID = ["chased", "followed", "saw", "heard", "met", "helped"]
STARTS = ["the", "yesterday the", "in the garden the", "they say that the"]
TOPICS = [
    ["goal", "team", "match", "coach", "race", "player", "stadium", "score"],
    ["bank", "loan", "market", "price", "trade", "tax", "profit", "budget"],
    ["rain", "storm", "cloud", "wind", "snow", "sun", "frost", "thunder"],
    ["bread", "soup", "cheese", "apple", "kitchen", "spice", "sauce", "cake"],
    ["train", "ticket", "airport", "road", "journey", "map", "luggage", "bridge"],
]
NAMES = ["anna", "ben", "clara", "david", "ella", "frank", "grace", "henry"]
NUMBERS = ["one", "two", "three", "four", "five", "six"]
ITEMS = ["coins", "stamps", "cards", "pens"]


def review(rng: np.random.Generator) -> Row:
    """`the film was good and the meal was poor but the trip was fine` -> good (1)."""
    label, usual = int(rng.integers(2)), int(rng.integers(2, 4))
    good = rng.permutation([label] * usual + [1 - label] * (3 - usual))
    things = rng.choice(THINGS, 3, replace=False)
    said = [
        f"the {thing} was {rng.choice(GOOD if g else BAD)}" for thing, g in zip(things, good, strict=True)
    ]
    return f"{said[0]} and {said[1]} but {said[2]}", None, label


def doer(rng: np.random.Generator) -> Row:
    """`yesterday the dog chased the pilot` -> an animal acts (1)."""
    label = int(rng.integers(2))
    acts, bears = (ANIMALS, PEOPLE) if label else (PEOPLE, ANIMALS)
    text = f"{rng.choice(STARTS)} {rng.choice(acts)} {rng.choice(DID)} the {rng.choice(bears)}"
    return text, None, label


def topic(rng: np.random.Generator) -> Row:
    """Eight words, of which six or seven are of one topic."""
    label, count = int(rng.integers(5)), int(rng.integers(6, 8))
    others = rng.permutation([other for other in range(5) if other != label] * 2)
    words = [rng.choice(TOPICS[t]) for t in [label] * count + list(others[: 8 - count])]
    return " ".join(rng.permutation(words)), None, label


def compare(rng: np.random.Generator) -> Row:
    """`anna has six coins`, `ben has three coins` -> more (0), fewer (1), as many (2)."""
    label, (a, b) = int(rng.integers(3)), rng.choice(NAMES, 2, replace=False)
    small, large = sorted(rng.choice(len(NUMBERS), 2, replace=False))
    first, second = ((large, small), (small, large), (small, small))[label]
    item = rng.choice(ITEMS)
    return f"{a} has {NUMBERS[first]} {item}", f"{b} has {NUMBERS[second]} {item}", label


TASKS = {
    "review": TextTask(review, ["disliked", "liked"]),
    "doer": TextTask(doer, ["person", "animal"]),
    "topic": TextTask(topic, ["sport", "money", "weather", "food", "travel"]),
    "compare": TextTask(compare, ["more", "fewer", "equal"]),
}


def make(folder: Path, seed: int = 0, progress: Callable[[str], None] = print) -> None:
    """Write base, experts, unlabelled data with labels to compare with, and a configuration.

    Args:
        folder: gets `base/`, `experts/<task>/`, `data/<task>.jsonl` and `config.yml`.
    """
    make_models(folder, TASKS, seed, progress)
    for task in TASKS:
        _write_data(folder / "data" / f"{task}.jsonl", rows(TASKS, task, UNLABELLED, seed + 1))
    write_text(folder / "config.yml", CONFIG.format(folder=folder))


CONFIG = """\
# Written by `python -m fusion_tinting.mini.texts`; a quarter of a minute on a CPU.
base_model: "{folder}/base"
models:
  - {{model: "{folder}/experts/review", task: review, data: "{folder}/data/review.jsonl"}}
  - {{model: "{folder}/experts/doer", task: doer, data: "{folder}/data/doer.jsonl"}}
  - {{model: "{folder}/experts/topic", task: topic, data: "{folder}/data/topic.jsonl"}}
  - model: "{folder}/experts/compare"
    task: compare
    data: {{path: "{folder}/data/compare.jsonl", text_pair: second}}
# init: where λ starts, and λ of Task Arithmetic in the report; the usual 0.3 is for eight tasks.
adapt: {{layer: head, sampler: confidence_difference, steps: 150, batch_size: 32, lr: 1.0e-2, init: 0.4}}
data: {{text: text, label: label}}   # labels are for the report alone
"""


def _write_data(path: Path, data: list[Row]) -> None:
    lines = []
    for text, second, label in data:
        row = {"text": text, "second": second, "label": label}
        lines.append(json.dumps({key: value for key, value in row.items() if value is not None}))
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
