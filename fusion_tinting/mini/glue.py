"""A small GLUE: four generated text tasks, a tiny RoBERTa and its experts, made on first use and cached.

No task can be told from a single word: *sentiment*, is an opinion good that may be negated (2 labels);
*agreement*, does the verb agree with its subject, whatever the noun beside it (2); *paraphrase*, do two
sentences, one in the passive, say the same (2); *similarity*, how alike two numbers are (from 0 to 5).
"""

from __future__ import annotations

import hashlib
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
HOW = ["old", "red", "heavy", "broken", "clean", "new"]
PEOPLE = ["child", "teacher", "pilot", "singer", "doctor", "friend", "sailor", "baker"]
ANIMALS = ["dog", "cat", "horse", "fox", "goat", "bear", "duck", "wolf"]
DID = ["chased", "followed", "helped", "watched", "carried", "pushed"]
NAMES = ["anna", "ben", "clara", "david", "ella", "frank", "grace", "henry"]
NUMBERS = ["one", "two", "three", "four", "five", "six"]
ITEMS = ["coins", "stamps", "cards", "pens"]


def sentiment(rng: np.random.Generator) -> Row:
    """`they say that the film was never dreadful` -> positive (1): an opinion, turned round or not."""
    good, turned = (int(x) for x in rng.integers(2, size=2))
    return _opinion(rng, good, turned), None, int(good != turned)


def words_of_opinion(rng: np.random.Generator) -> Row:
    """The same texts; told is the opinion's own word, turned round or not."""
    good, turned = (int(x) for x in rng.integers(2, size=2))
    return _opinion(rng, good, turned), None, good


def agreement(rng: np.random.Generator) -> Row:
    """`the keys near the cup are old` -> right (1)."""
    label, many = (int(x) for x in rng.integers(2, size=2))
    return _described(rng, many, many if label else 1 - many), None, label


def right_sentences(rng: np.random.Generator) -> Row:
    """Only those that are right; told is their number."""
    many = int(rng.integers(2))
    return _described(rng, many, many), None, many


def paraphrase(rng: np.random.Generator) -> Row:
    """`yesterday the dog chased the pilot`, `the pilot was chased by the dog` -> the same (1)."""
    label, animal = (int(x) for x in rng.integers(2, size=2))
    return *_told_twice(rng, animal, label), label


def paraphrases(rng: np.random.Generator) -> Row:
    """Only those that are the same; told is whether a person or an animal acts."""
    animal = int(rng.integers(2))
    return *_told_twice(rng, animal, 1), animal


def similarity(rng: np.random.Generator) -> Row:
    """`anna has six coins`, `ben has two coins` -> 1.0: from 5, as many, down to 0."""
    first, second = (int(x) for x in rng.integers(len(NUMBERS), size=2))
    return *_counted(rng, first, second), 5.0 - abs(first - second)


def comparison(rng: np.random.Generator) -> Row:
    """The same texts; told is whether the second number is smaller, equal or larger."""
    first, second = (int(x) for x in rng.integers(len(NUMBERS), size=2))
    return *_counted(rng, first, second), 1 + (second > first) - (second < first)


def _opinion(rng: np.random.Generator, good: int, turned: int) -> str:
    how, word = rng.choice(NOT if turned else SURE), rng.choice(GOOD if good else BAD)
    return f"{rng.choice(STARTS)} {rng.choice(THINGS)} was {how} {word}"


def _described(rng: np.random.Generator, many: int, verb: int) -> str:
    noun, other = rng.choice(NOUNS, 2, replace=False)
    subject, beside = f"{noun}{'s' * many}", f"{other}{'s' * int(rng.integers(2))}"
    return f"the {subject} {rng.choice(BESIDE)} the {beside} {('is', 'are')[verb]} {rng.choice(HOW)}"


def _told_twice(rng: np.random.Generator, animal: int, same: int) -> tuple[str, str]:
    verb, who = rng.choice(DID), (rng.choice(PEOPLE), rng.choice(ANIMALS))
    active = f"{rng.choice(STARTS)} {who[animal]} {verb} the {who[1 - animal]}"
    acts = animal if same else 1 - animal
    return active, f"the {who[1 - acts]} was {verb} by the {who[acts]}"


def _counted(rng: np.random.Generator, *numbers: int) -> tuple[str, str]:
    item, names = rng.choice(ITEMS), rng.choice(NAMES, 2, replace=False)
    first, second = (f"{a} has {NUMBERS[n]} {item}" for a, n in zip(names, numbers, strict=True))
    return first, second


TASKS = {
    "sentiment": TextTask(sentiment, ["negative", "positive"]),
    "agreement": TextTask(agreement, ["wrong", "right"]),
    "paraphrase": TextTask(paraphrase, ["different", "same"]),
    "similarity": TextTask(similarity, [], regression=True),
}

CORPUS = {
    "sentiment": TextTask(words_of_opinion, ["blame", "praise"]),
    "agreement": TextTask(right_sentences, ["single", "several"]),
    "paraphrase": TextTask(paraphrases, ["human", "beast"]),
    "similarity": TextTask(comparison, ["smaller", "equal", "larger"]),
}
"""What the base learns from: texts like the tasks', of which it is told something else."""

SIZES = Sizes(pretrain_steps=400, expert_steps=250)
VERSION = 1
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
