"""Files of a finished run, of an interrupted one and of the cache, damaged one at a time and then used."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import fusion_tinting as ft
from fusion_tinting.run import checkpoint

from .damage import Damage, copy_over, damages
from .results import TASKS, difference, hostile_world, seen
from .verdicts import Verdict, judge

STEPS = 9


@dataclass(frozen=True)
class Scenario:
    """Files that a run left, and what is done with them.

    `write(folder, variant)` leaves them in `folder/run` and `folder/cache`: 0 are those that are damaged, 1
    those of another run, and 2, where there are so many variants, those of the same run at an earlier time.
    `use(folder)` gives a model.
    """

    name: str
    write: Callable[[Path, int], None]
    use: Callable[[Path], Any]
    variants: int = 2


class Dense(torch.nn.Module):
    """A head of 5 classes at each of 3 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 15)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).unflatten(1, (5, 3))


def finished(**settings: Any) -> Callable[[Path, int], None]:
    """Return what writes a finished run."""

    def write(folder: Path, variant: int) -> None:
        hostile_world().tint(run_dir=folder / "run", **{"steps": STEPS, "seed": variant, **settings})
        shutil.rmtree(folder / "cache", ignore_errors=True)

    return write


def interrupted(**settings: Any) -> Callable[[Path, int], None]:
    """Return what writes a run that was stopped behind a checkpoint."""

    def write(folder: Path, variant: int) -> None:
        last = {0: 7, 1: 7, 2: 3}[variant]

        def stop(step: int, _: Any) -> None:
            if step == last + 1:
                raise InterruptedError

        options = {"steps": STEPS, "seed": variant % 2, **settings}
        with pytest.raises(InterruptedError):
            hostile_world().tint(run_dir=folder / "run", on_step=stop, **options)

    return write


def cached(kind: str, **settings: Any) -> Scenario:
    """Return the scenario of expert predictions in the cache, in one of the forms that they are kept in."""

    def world(variant: int) -> Any:
        found = hostile_world(seed=variant, classes=1030 if kind == "top" else 4)
        if kind == "ids":
            found.heads = {task: Dense() for task in TASKS}
        return found

    def write(folder: Path, variant: int) -> None:
        world(variant).tint(steps=STEPS, **settings)

    return Scenario(f"cache of {kind}", write, lambda _: world(0).tint(steps=STEPS, **settings))


def load(folder: Path) -> Any:
    """Load a finished run."""
    return ft.TintedModel.load(folder / "run", **hostile_world().models())


def go_on(**settings: Any) -> Callable[[Path], Any]:
    """Return what starts a run again."""
    return lambda folder: hostile_world().tint(run_dir=folder / "run", **{"steps": STEPS, **settings})


BLOCK = {"layer": "block:1", "average": True}
JOINT = {"update": "joint", "sampler": "top_confidence:0.5"}
AUTO = {"layer": "auto"}
SCENARIOS = (
    Scenario("finished run, loaded", finished(), load),
    Scenario("finished run with a tinted block, started again", finished(**BLOCK), go_on(**BLOCK)),
    Scenario("finished run with a chosen layer, loaded", finished(**AUTO), load),
    Scenario("interrupted run with a tinted block", interrupted(**BLOCK), go_on(**BLOCK), 3),
    Scenario("interrupted joint run", interrupted(**JOINT), go_on(**JOINT), 3),
    Scenario("interrupted run with a chosen layer", interrupted(**AUTO), go_on(**AUTO), 3),
    Scenario(
        "start of λ from an earlier run",
        finished(),
        lambda folder: hostile_world().tint(steps=2, seed=7, init=str(folder / "run")),
    ),
    cached("logits"),
    cached("top", objective="soft"),
    cached("ids", sampler="all"),
)


def count(tries: int, seed: int = 0) -> list[Verdict]:
    """Damage so many files, spread evenly over the scenarios."""
    verdicts = []
    for place, scenario in enumerate(SCENARIOS):
        share = tries // len(SCENARIOS) + (place < tries % len(SCENARIOS))
        verdicts += attempts(scenario, share, seed)
    return verdicts


def attempts(scenario: Scenario, tries: int, seed: int) -> Iterator[Verdict]:
    """Yield how each of so many attempts ended."""
    with TemporaryDirectory() as name, checkpoints_every(4):
        top = Path(name)
        folders = [top / str(variant) for variant in range(scenario.variants)]
        for variant, folder in enumerate(folders):
            with cache_in(folder):
                scenario.write(folder, variant)
        expected = _expected(scenario, folders[0], top / "expected")
        random = Random(f"{scenario.name} {seed}")
        for path, what, damage in _plan(folders, tries, random):
            here = shutil.copytree(folders[0], top / "damaged")
            if _apply(damage, here / path, random):
                yield _attempt(scenario, here, path, what, expected)
            shutil.rmtree(here)


def _expected(scenario: Scenario, folder: Path, copy: Path) -> dict[str, Any]:
    shutil.copytree(folder, copy)
    with cache_in(copy):
        return seen(scenario.use(copy))


def _plan(folders: list[Path], tries: int, random: Random) -> Iterator[tuple[Path, str, Damage]]:
    """Yield (file, what is done, how): everything that can be, in random order, then once more."""
    folder = folders[0]
    paths = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    every = [(path, what, damage) for path in paths for what, damage in damages(folder / path)]
    every += [(path, *exchange) for path in paths for exchange in _exchanges(path, paths, folders)]
    for turn in range(tries):
        if turn % len(every) == 0:
            random.shuffle(every)
        yield every[turn % len(every)]


def _exchanges(path: Path, paths: list[Path], folders: list[Path]) -> Iterator[tuple[str, Damage]]:
    alike = [other for other in paths if other.parent == path.parent and other.suffix == path.suffix]
    for other in alike:
        if other != path:
            yield f"replace by {other.name}", _copying(folders[0] / other)
    for folder, whose in zip(folders[1:], ("another run", "an earlier time"), strict=False):
        theirs = sorted((folder / path.parent).glob(f"*{path.suffix}"))
        if len(theirs) == len(alike):
            yield f"replace by that of {whose}", _copying(theirs[alike.index(path)])


def _copying(source: Path) -> Damage:
    return lambda path, _: copy_over(path, source)


def _apply(damage: Damage, path: Path, random: Random) -> bool:
    """Damage a file; return whether it is another than before."""
    before = path.read_bytes()
    damage(path, random)
    return not path.is_file() or path.read_bytes() != before


def _attempt(scenario: Scenario, folder: Path, path: Path, what: str, expected: dict) -> Verdict:
    without_curves = path.name == "curves.csv" and what == "delete"  # which stands for a choice of the user

    def wrong(model: Any) -> str | None:
        found = seen(model)
        left_out = {"history": expected["history"]} if without_curves and found["history"] is None else {}
        return difference(expected, found | left_out)

    with cache_in(folder):
        name = f"{scenario.name}: {path.as_posix()}: {what}"
        return judge(name, lambda: scenario.use(folder), wrong, [path.name, str(folder)])


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Keep the user's cache in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_TINTING_CACHE", str(folder / "cache"))
        yield


@contextmanager
def checkpoints_every(iterations: int) -> Iterator[None]:
    """Write checkpoints more often than runs as short as these need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "EVERY", iterations)
        yield
