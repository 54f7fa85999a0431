"""How much of everything the mini benchmark is made of. Sizes and steps only: no code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from fusion_tinting.errors import unknown

VERSION = 4
"""Raise it whenever a zoo built by the new code would differ from one built by the old."""


@dataclass(frozen=True)
class Recipe:
    """One benchmark of tiny models. Equal recipes and seeds give equal zoos."""

    name: str
    tasks: tuple[str, ...]
    train: int = 4500
    val: int = 2500
    test: int = 1000
    """Images a task in each split."""
    width: int = 128
    layers: int = 4
    web_images: int = 2000
    """Clean images a task for pre-training."""
    field_images: int = 6
    """Images a task for pre-training that its own camera took; more of them make the tasks easier."""
    pretrain_steps: int = 1200
    pretrain_batch: int = 64
    pretrain_lr: float = 2e-3
    expert_steps: int = 400
    expert_batch: int = 32
    expert_lr: float = 5e-4
    minutes: str = "about 3 minutes"
    """How long a build takes, said to the user."""

    def fingerprint(self) -> str:
        """Short name of everything that the zoo depends on but the seed."""
        content = {"version": VERSION, **asdict(self)}
        del content["minutes"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


EIGHT = (
    "mini-digits", "mini-letters", "mini-numbers", "mini-photos",
    "mini-textures", "mini-aerial", "mini-signs", "mini-cars",
)  # fmt: skip
FOURTEEN = (
    *EIGHT, "mini-shapes", "mini-counts", "mini-arrows", "mini-faces", "mini-flags", "mini-weather",
)  # fmt: skip
TWENTY = (
    *FOURTEEN, "mini-clocks", "mini-cards", "mini-charts", "mini-leaves", "mini-curves", "mini-braille",
)  # fmt: skip

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="clip-mini_8", tasks=EIGHT),
        # Pre-training in proportion to the tasks, so that each is seen as often.
        Recipe(name="clip-mini_14", tasks=FOURTEEN, pretrain_steps=2100, minutes="about 5 minutes"),
        Recipe(name="clip-mini_20", tasks=TWENTY, pretrain_steps=3000, minutes="about 8 minutes"),
        Recipe(
            name="clip-micro_3",
            tasks=("mini-digits", "mini-textures", "mini-signs"),
            train=120,
            val=60,
            test=60,
            width=32,
            layers=2,
            web_images=120,
            pretrain_steps=20,
            pretrain_batch=32,
            expert_steps=10,
            expert_batch=32,
            minutes="a few seconds",
        ),
    )
}
"""Recipe name -> recipe: the benchmark in three sizes, and a far smaller one of the same make for tests."""


def find(name: str) -> Recipe:
    """The recipe of this name."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
