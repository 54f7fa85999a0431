"""A small GLUE: four generated text tasks, a tiny RoBERTa and its experts, made on first use and cached.

No task can be told from a single word: *sentiment*, is an opinion good that may be negated (2 labels);
*agreement*, does the verb agree with its subject, whatever the noun beside it (2); *paraphrase*, do two
sentences, one in the passive, say the same (2); *similarity*, how alike two sizes are (from 0 to 2).

Each label takes two things that a text says. The base learns one of them, so that no linear map of what it
knows tells the label (`benchmarks/probes.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusion_tinting.errors import unknown
from fusion_tinting.mini.once import built_once, require_seed
from fusion_tinting.mini.text_zoo import TRAIN, TextTask, make_models, rows
from fusion_tinting.mini.tiny_roberta import Row, Sizes

COUNTS = {"train": TRAIN, "val": 1600, "test": 1000}
SEEDS = {"train": 3, "val": 4, "test": 5}

THINGS = ["film", "book", "song", "play", "meal", "hotel", "phone", "game", "show", "trip"]
GOOD = ["good", "great", "fine", "lovely", "brilliant", "superb", "pleasant", "charming"]
BAD = ["bad", "awful", "poor", "dreadful", "boring", "terrible", "nasty", "clumsy"]
STARTS = ["the", "yesterday the", "they say that the", "we know that the", "today the", "perhaps the"]
NOT = ["not", "never", "hardly"]
SURE = ["really", "always", "clearly"]
NOUNS = ["key", "letter", "cup", "chair", "lamp", "door", "wheel", "stone", "coat", "shelf"]
BESIDE = ["near", "behind", "under", "above"]
VERBS = [
    ("falls", "fall"), ("shines", "shine"), ("rusts", "rust"), ("breaks", "break"), ("moves", "move"),
    ("burns", "burn"), ("fades", "fade"), ("cracks", "crack"),
]  # fmt: skip
WHEN = ["today", "again", "now", "often", "slowly", "soon"]
PEOPLE = ["child", "teacher", "pilot", "singer", "doctor", "friend", "sailor", "baker"]
ANIMALS = ["dog", "cat", "horse", "fox", "goat", "bear", "duck", "wolf"]
KINDS = ["person", "animal"]
DID = ["chased", "followed", "helped", "watched", "carried", "pushed"]
NAMES = ["anna", "ben", "clara", "david", "ella", "frank", "grace", "henry"]
LARGE = [["tiny", "little", "small"], ["medium", "average", "normal"], ["huge", "giant", "massive"]]
OWNED = ["box", "bag", "car", "house"]

Told = tuple[str, str | None, float, int]
"""A text, a second one or None, the label of the task, and what the base is told, both from 0."""


def sentiment(rng: np.random.Generator) -> Told:
    """`they say that the film was never dreadful` -> positive (1); the opinion's own word is bad (0)."""
    good, turned = (int(x) for x in rng.integers(2, size=2))
    how, word = rng.choice(NOT if turned else SURE), rng.choice(GOOD if good else BAD)
    return f"{rng.choice(STARTS)} {rng.choice(THINGS)} was {how} {word}", None, int(good != turned), good


def agreement(rng: np.random.Generator) -> Told:
    """`the keys near the cup fall today` -> right (1); the keys are several (1)."""
    many, verb = (int(x) for x in rng.integers(2, size=2))
    noun, other = rng.choice(NOUNS, 2, replace=False)
    subject, beside = f"{noun}{'s' * many}", f"{other}{'s' * int(rng.integers(2))}"
    does = VERBS[rng.integers(len(VERBS))][verb]
    text = f"the {subject} {rng.choice(BESIDE)} the {beside} {does} {rng.choice(WHEN)}"
    return text, None, int(many == verb), many


def paraphrase(rng: np.random.Generator) -> Told:
    """`yesterday the dog chased the pilot`, `the person was chased by the animal` -> the same (1); in the
    first an animal acts (1)."""
    first, second = (int(x) for x in rng.integers(2, size=2))
    verb, who = rng.choice(DID), (rng.choice(PEOPLE), rng.choice(ANIMALS))
    active = f"{rng.choice(STARTS)} {who[first]} {verb} the {who[1 - first]}"
    passive = f"the {KINDS[1 - second]} was {verb} by the {KINDS[second]}"
    return active, passive, int(first == second), first


def similarity(rng: np.random.Generator) -> Told:
    """`anna has a tiny box`, `ben has a medium box` -> 1: from 2, as large, to 0; the first is small."""
    sizes, names = [int(x) for x in rng.integers(3, size=2)], rng.choice(NAMES, 2, replace=False)
    thing = rng.choice(OWNED)
    first, second = (
        f"{name} has a {rng.choice(LARGE[size])} {thing}" for name, size in zip(names, sizes, strict=True)
    )
    return first, second, 2.0 - abs(sizes[0] - sizes[1]), sizes[0]


def _row(told: Callable[[np.random.Generator], Told], which: int) -> Callable[[np.random.Generator], Row]:
    """Of all that is told of a text, one thing as its label."""

    def row(rng: np.random.Generator) -> Row:
        text, pair, *labels = told(rng)
        return text, pair, labels[which]

    return row


TASKS = {
    "sentiment": TextTask(_row(sentiment, 0), ["negative", "positive"]),
    "agreement": TextTask(_row(agreement, 0), ["wrong", "right"]),
    "paraphrase": TextTask(_row(paraphrase, 0), ["different", "same"]),
    "similarity": TextTask(_row(similarity, 0), [], regression=True),
}

CORPUS = {
    "sentiment": TextTask(_row(sentiment, 1), ["blame", "praise"]),
    "agreement": TextTask(_row(agreement, 1), ["single", "several"]),
    "paraphrase": TextTask(_row(paraphrase, 1), ["human", "beast"]),
    "similarity": TextTask(_row(similarity, 1), ["minor", "middle", "major"]),
}
"""What the base learns from: the tasks' texts, of which it is told something else."""

SIZES = Sizes(layers=2, spread=0.1, pretrain_steps=400, expert_steps=300)
VERSION = 2
"""Of what is made; a change of the code above that changes it must change this."""


def build(seed: int = 0) -> Path:
    """The folder of the models, made first where it is not cached yet: `base/` and `experts/<task>/`.

    Args:
        seed: all randomness follows from it: another seed gives other texts and other models.
    """
    require_seed(seed)
    what = hashlib.sha256(repr((VERSION, TRAIN, SIZES)).encode()).hexdigest()[:8]
    return built_once(f"roberta-mini_4-{what}-seed{seed}", lambda folder: _make(folder, seed))


def load_dataset(task: str, split: str, seed: int = 0):
    """One split of a task as a `datasets.Dataset`: `text`, of pairs `text_pair`, and `label`.

    Args:
        task: `sentiment`, `agreement`, `paraphrase` or `similarity`.
        split: `train` (the experts' own), `val` (to adapt on without labels) or `test`; no text is in two.
        seed: as `build`.
    """
    from datasets import ClassLabel, Dataset, Features, Value  # here, for it takes seconds to import

    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if split not in COUNTS:
        raise unknown("split", split, COUNTS)
    texts, pairs, labels = zip(
        *rows(TASKS, task, COUNTS[split], 100 * seed + SEEDS[split], split), strict=True
    )
    names = TASKS[task].names
    label = Value("float32") if TASKS[task].regression else ClassLabel(names=names)
    columns = {"text": texts, "text_pair": pairs, "label": labels}
    kinds = {"text": Value("string"), "text_pair": Value("string"), "label": label}
    kept = [name for name in columns if name != "text_pair" or pairs[0] is not None]
    return Dataset.from_dict(
        {name: list(columns[name]) for name in kept},
        features=Features({name: kinds[name] for name in kept}),
    )


def _make(folder: Path, seed: int) -> None:
    print("Building roberta-mini_4 (once, about a minute)")
    make_models(folder, TASKS, 100 * seed, print, SIZES, CORPUS, "train")
