"""A recipe: everything that a zoo depends on but its seed, and the parts that a zoo of it has."""

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fusion_tinting.errors import unknown
from fusion_tinting.mini.training import Advance

SPLITS = ("train", "val", "test")
"""What the experts learn from; what to adapt on without labels; what to score on."""


class Build(NamedTuple):
    """One seeded make of a recipe.

    Attributes:
        zoo: Folder of the parts that are complete.
        seed: All randomness follows from it.
    """

    zoo: Path
    seed: int


class Part(NamedTuple):
    """A folder of a zoo.

    Attributes:
        name: Path of the folder inside the zoo.
        steps: How often `make` advances the progress bar.
        make: Fills an empty folder, called as `make(build, folder, advance)`.
    """

    name: str
    steps: int
    make: Callable[[Build, Path, Advance], None]


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """A benchmark of tiny models. Equal recipes and seeds give equal zoos, tensor for tensor.

    Args:
        name: What users call it, such as `clip-mini_8`.
        tasks: Names of its tasks, in the order of the tables.
        train: Samples of each task that its expert learns from.
        val: Samples of each task to adapt on.
        test: Samples of each task to score on.
        pretrain_steps: Steps of the base.
        pretrain_lr: Largest learning rate of the base.
        expert_steps: Steps of each expert.
        expert_lr: Largest learning rate of an expert.
        minutes: How long a build takes, for the user to read.
        workers: Processes that build at the same time, with one thread each; 0: this one builds alone, for
            what is made sooner than a process starts.
    """

    name: str
    tasks: tuple[str, ...]
    train: int
    val: int
    test: int
    pretrain_steps: int
    pretrain_lr: float
    expert_steps: int
    expert_lr: float
    minutes: str
    workers: int = 2

    version: ClassVar[int]
    """Raise it whenever a zoo built by the new code would differ from one built by the old."""

    def fingerprint(self) -> str:
        """Return a short hash of everything that the zoo depends on but the seed."""
        content = {"version": self.version, **asdict(self)}
        del content["minutes"], content["workers"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def stages(self) -> list[list[Part]]:
        """Return the parts of a zoo; those of a stage need the stages before it and none of their own."""
        return [[self.base(), *self.data()], self.experts()]

    def base(self) -> Part:
        """Return the part that is the pre-trained model."""
        return Part("pretrained", self.pretrain_steps, self.pretrain)

    def data(self) -> list[Part]:
        """Return the parts that are data sets, one for each task."""
        return [Part(f"data/{task}", 1, partial(self.save_datasets, task)) for task in self.tasks]

    def experts(self) -> list[Part]:
        """Return the parts that are experts, one for each task."""
        return [Part(task, self.expert_steps, partial(self.finetune, task)) for task in self.tasks]

    @abstractmethod
    def pretrain(self, build: Build, folder: Path, advance: Advance) -> None:
        """Train the base and save it in `folder`."""

    @abstractmethod
    def finetune(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Train the expert of `task`, starting from the base, and save it in `folder`."""

    def save_datasets(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Save the three splits of a task in `folder`."""
        for split in SPLITS:
            self.make_dataset(task, split, build.seed).save_to_disk(folder / split)
        advance(1)

    def make_dataset(self, task: str, split: str, seed: int) -> Any:
        """Return a `datasets.Dataset` of one split of a task."""
        raise NotImplementedError

    def load_dataset(self, zoo: Path, task: str, split: str) -> Any:
        """Return one split of a task, as it was saved in a zoo."""
        from datasets import load_from_disk  # takes seconds to import

        return load_from_disk(str(zoo / "data" / task / split))


_PICTURES = "fusion_tinting.mini.pictures"
MODULES = {
    **dict.fromkeys(("clip-mini_8", "clip-mini_14", "clip-mini_20", "clip-micro_3"), f"{_PICTURES}.clip"),
    "openclip-mini_3": f"{_PICTURES}.open_clip",
    **dict.fromkeys(("resnet-mini_3", "resnet-micro_3"), f"{_PICTURES}.resnet"),
    **dict.fromkeys(("nyuv2-mini_3", "nyuv2-micro_3"), "fusion_tinting.mini.scenes.nyuv2"),
    "roberta-mini_4": "fusion_tinting.mini.text.glue",
}
"""Name of a recipe -> the module whose `RECIPES` has it, imported when asked for: OpenCLIP is an extra."""


def find(name: str) -> Recipe:
    """Return the recipe called `name`.

    Args:
        name: One of `MODULES`.

    Raises:
        ValueError: There is no recipe of this name.
    """
    if name not in MODULES:
        raise unknown("recipe", name, MODULES)
    return importlib.import_module(MODULES[name]).RECIPES[name]
