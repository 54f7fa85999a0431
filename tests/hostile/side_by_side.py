"""Several processes with one `run_dir`, started together."""

import multiprocessing
import shutil
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from .mutations import cache_in, checkpoints_every, load
from .processes import start
from .results import difference, hostile_world, seen
from .verdicts import REFUSED, RIGHT, UNCLEAR, WRONG, Verdict, clear, judge, said_by

STEPS = 30
GROUPS = (
    ("one seed", [0, 0]),
    ("two seeds", [0, 1]),
    ("two seeds of four", [0, 1, 0, 1]),
    ("one seed of four", [0, 0, 0, 0]),
)


def count(tries: int, seed: int = 0) -> list[Verdict]:
    """Start at least so many processes, in groups with one folder each."""
    verdicts: list[Verdict] = []
    with TemporaryDirectory() as name, checkpoints_every(4):
        top = Path(name)
        expected = {}
        for one in (0, 1):
            with cache_in(top / f"alone{one}"):
                expected[one] = seen(_tint(top / f"alone{one}", one))
        turn = seed
        while len(verdicts) < tries:
            what, seeds = GROUPS[turn % len(GROUPS)]
            late = Random(turn).choice([0, 0.05, 0.3])
            verdicts += _group(f"{what}, within {late} s", seeds, top / f"group{turn}", expected, late)
            turn += 1
    return verdicts


def _tint(folder: Path, seed: int) -> Any:
    return hostile_world().tint(run_dir=folder / "run", steps=STEPS, seed=seed)


def _group(
    what: str, seeds: list[int], folder: Path, expected: dict[int, dict], late: float
) -> list[Verdict]:
    folder.mkdir()
    barrier = multiprocessing.get_context("fork").Barrier(len(seeds))

    def work(seed: int) -> Any:
        barrier.wait()
        time.sleep(Random().uniform(0, late))
        return seen(_tint(folder, seed))

    with cache_in(folder):
        answers = [folder / f"answer{place}" for place in range(len(seeds))]
        children = [start(lambda s=seed: work(s), path) for seed, path in zip(seeds, answers, strict=True)]
        found = [child.wait() for child in children]
    verdicts = [
        _verdict(f"{what}: process {place}", *outcome, expected[seed], folder)
        for place, (outcome, seed) in enumerate(zip(found, seeds, strict=True))
    ]
    verdicts.append(_folder(what, seeds, folder, expected))
    shutil.rmtree(folder)
    return verdicts


def _verdict(name: str, ended: bool, found: Any, expected: dict, folder: Path) -> Verdict:
    if not ended:
        return Verdict(name, UNCLEAR, "died")
    if isinstance(found, BaseException):
        return Verdict(name, REFUSED if clear(found, [str(folder)]) else UNCLEAR, said_by(found))
    differs = difference(expected, found)
    return Verdict(name, RIGHT) if differs is None else Verdict(name, WRONG, differs)


def _folder(what: str, seeds: list[int], folder: Path, expected: dict[int, dict]) -> Verdict:
    """What lies in the folder afterward must be one of the runs, whole."""

    def wrong(model: Any) -> str | None:
        differences = [difference(expected[seed], seen(model)) for seed in set(seeds)]
        return None if None in differences else differences[0]

    return judge(f"{what}: the folder", lambda: load(folder), wrong, [])
