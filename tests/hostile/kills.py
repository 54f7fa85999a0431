"""Runs that are killed at random moments and started again."""

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from .mutations import cache_in, checkpoints_every
from .processes import start
from .results import difference, hostile_world, seen
from .verdicts import RIGHT, UNCLEAR, WRONG, Verdict, said_by

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PNG = b"\x89PNG"


@dataclass(frozen=True)
class Program:
    """What is killed: `run(folder)` writes into `folder/run` and gives something that pickles.

    `pictures` says whether it draws.
    """

    name: str
    run: Callable[[Path], Any]
    pictures: bool = False


def core(**settings: Any) -> Program:
    """Return `ft.tint` with these settings."""

    def run(folder: Path) -> Any:
        return seen(hostile_world().tint(run_dir=folder / "run", **{"steps": 40, **settings}))

    return Program(f"tint, {settings or 'head tint'}", run)


CORE = (core(), core(layer="block:1", average=True), core(update="joint"), core(layer="auto", steps=20))


def count(tries: int, seed: int = 0, programs: tuple[Program, ...] = CORE) -> list[Verdict]:
    """Kill so many runs."""
    random = Random(seed)
    verdicts = []
    with TemporaryDirectory() as name, checkpoints_every(3):
        top = Path(name)
        whole = [_whole(program, top / f"whole{place}") for place, program in enumerate(programs[:tries])]
        for turn in range(tries):
            place = turn % len(programs)
            folder = top / f"killed{turn}"
            verdicts.append(_killed(programs[place], folder, *whole[place], random))
            shutil.rmtree(folder)
    return verdicts


def _whole(program: Program, folder: Path) -> tuple[Any, set[str], float]:
    """Return the result, the names of the files, and the seconds of a run that nobody disturbs."""
    folder.mkdir()
    begin = time.perf_counter()
    ended, found = _start(program, folder).wait()
    seconds = time.perf_counter() - begin
    if not ended or isinstance(found, BaseException):
        raise RuntimeError(f"{program.name} fails undisturbed: {found!r}") from (found if ended else None)
    return found, _names(folder), seconds


def _start(program: Program, folder: Path) -> Any:
    with cache_in(folder):
        return start(lambda: program.run(folder), folder / "answer")


def _killed(
    program: Program, folder: Path, expected: Any, names: set[str], seconds: float, random: Random
) -> Verdict:
    folder.mkdir()
    said = []
    for _ in range(random.choice([1, 1, 1, 2])):
        number, after = random.choice(SIGNALS), random.uniform(0, 1.05 * seconds)
        said.append(f"{number.name} after {after:.3f} s")
        child = _start(program, folder)
        time.sleep(after)
        child.kill(number)
        child.wait()
    name = f"{program.name}, {', '.join(said)}"
    ended, found = _start(program, folder).wait()
    if not ended or isinstance(found, BaseException):
        return Verdict(name, UNCLEAR, said_by(found) if ended else "died")
    for fault in (difference(expected, found), _left(folder, names), _undrawn(program, folder)):
        if fault is not None:
            return Verdict(name, WRONG, fault)
    return Verdict(name, RIGHT)


def _names(folder: Path) -> set[str]:
    """Return the files of run and cache; what else hosts write is theirs."""
    found = [path for part in ("run", "cache") for path in (folder / part).rglob("*")]
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


def _left(folder: Path, names: set[str]) -> str | None:
    """Return which files are there that an undisturbed run does not leave, or not there."""
    here = _names(folder)
    return f"files {sorted(here ^ names)}" if here != names else None


def _undrawn(program: Program, folder: Path) -> str | None:
    if not program.pictures:
        return None
    drawn = {path.name for path in (folder / "run").glob("*.png") if path.read_bytes().startswith(PNG)}
    return None if drawn >= {"curves.png", "coefficients.png"} else f"pictures: only {sorted(drawn)}"
