"""A small GLUE: four generated text tasks, a tiny RoBERTa and its experts, built on first use and cached.

No single word gives a label away: *sentiment*, is an opinion good that may be negated (2 labels);
*agreement*, does the verb agree with its subject, whatever the noun beside it (2); *paraphrase*, do two
sentences, one in the passive, say the same (2); *similarity*, how alike two sizes are (from 0 to 2).

Each label takes two things that a text says. The base learns one of them, so that no linear map of what it
knows gives the label (`benchmarks/probes.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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

SEEDS = {"train": 3, "val": 4, "test": 5}

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
KINDS = ["person", "animal"]
DID = ["chased", "followed", "helped", "watched", "carried", "pushed"]
LARGE = [["tiny", "little", "small"], ["medium", "average", "normal"], ["huge", "giant", "massive"]]
OWNED = ["box", "bag", "car", "house"]

Fact = tuple[str, str | None, float, int]
"""A text, a second one or None, the label of the task, and the label of the base, both from 0."""


def sentiment(rng: np.random.Generator) -> Fact:
    """Draw `they say that the film was never dreadful` -> positive (1); its last word is bad (0)."""
    good, turned = (int(x) for x in rng.integers(2, size=2))
    how, word = one_of(rng, NOT if turned else SURE), one_of(rng, GOOD if good else BAD)
    return f"{one_of(rng, STARTS)} {one_of(rng, THINGS)} was {how} {word}", None, int(good != turned), good


def agreement(rng: np.random.Generator) -> Fact:
    """Draw `the keys near the cup fall today` -> right (1); the keys are several (1)."""
    many, verb = (int(x) for x in rng.integers(2, size=2))
    noun, other = some_of(rng, NOUNS, 2)
    subject, beside = f"{noun}{'s' * many}", f"{other}{'s' * int(rng.integers(2))}"
    does = VERBS[rng.integers(len(VERBS))][verb]
    text = f"the {subject} {one_of(rng, BESIDE)} the {beside} {does} {one_of(rng, WHEN)}"
    return text, None, int(many == verb), many


def paraphrase(rng: np.random.Generator) -> Fact:
    """Draw `yesterday the dog chased the pilot`, `the person was chased by the animal` -> the same (1).

    The base learns that in the first an animal acts (1).
    """
    first, second = (int(x) for x in rng.integers(2, size=2))
    verb, who = one_of(rng, DID), (one_of(rng, PEOPLE), one_of(rng, ANIMALS))
    active = f"{one_of(rng, STARTS)} {who[first]} {verb} the {who[1 - first]}"
    passive = f"the {KINDS[1 - second]} was {verb} by the {KINDS[second]}"
    return active, passive, int(first == second), first


def similarity(rng: np.random.Generator) -> Fact:
    """Draw `anna has a tiny box`, `ben has a medium box` -> 1, of 2 (as large) to 0; the first is small."""
    sizes, names = [int(x) for x in rng.integers(3, size=2)], some_of(rng, NAMES, 2)
    thing = one_of(rng, OWNED)
    first, second = (
        f"{name} has a {one_of(rng, LARGE[size])} {thing}" for name, size in zip(names, sizes, strict=True)
    )
    return first, second, 2.0 - abs(sizes[0] - sizes[1]), sizes[0]


def _row(draw: Callable[[np.random.Generator], Fact], which: int) -> Callable[[np.random.Generator], Row]:
    """Return a function that draws rows with one of the two labels: 0, the task's; 1, the base's."""

    def row(rng: np.random.Generator) -> Row:
        text, pair, *labels = draw(rng)
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
"""What the base learns from: the tasks' texts, with other labels."""


@dataclass(frozen=True, kw_only=True)
class GlueRecipe(TextRecipe):
    """The small GLUE."""

    tasks: tuple[str, ...] = tuple(TASKS)

    table = TASKS
    corpus = CORPUS
    split = "train"

    def make_dataset(self, task: str, split: str, seed: int) -> Any:
        """Return a `datasets.Dataset` with features `text`, of pairs `text_pair`, and `label`."""
        from datasets import ClassLabel, Dataset, Features, Value  # takes seconds to import

        data = rows(TASKS, task, getattr(self, split), 100 * seed + SEEDS[split], split)
        texts, pairs, labels = zip(*data, strict=True)
        number = Value("float32") if TASKS[task].regression else ClassLabel(names=TASKS[task].names)
        columns = {"text": list(texts), "text_pair": list(pairs), "label": list(labels)}
        kinds = {"text": Value("string"), "text_pair": Value("string"), "label": number}
        if pairs[0] is None:
            del columns["text_pair"], kinds["text_pair"]
        return Dataset.from_dict(columns, features=Features(kinds))


RECIPES = {"roberta-mini_4": GlueRecipe(name="roberta-mini_4", expert_steps=300)}
"""Name -> recipe."""
