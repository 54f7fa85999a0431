"""Runs of `fusion_bench` on `clip-mini_8`."""

from importlib.metadata import version
from pathlib import Path

from fusion_tinting.mini import recipe
from helpers.runs import Runner

POOLS = ("modelpool=clip-mini_8", "taskpool=clip-mini_8", "fabric.accelerator=cpu")
ZOO = recipe.find("clip-mini_8").fingerprint()
METHODS = [
    (path.name, path.read_text())
    for path in sorted(Path(__file__).resolve().parents[2].glob("configs/method/model_tinting*.yaml"))
]


def identity(overrides: tuple[str, ...]) -> list:
    """Return what a run's outcome depends on: with another recipe or other settings the runs are others."""
    return [overrides, ZOO, METHODS, version("fusion-bench")]


def runner(work: Path, jobs: int, environment: dict[str, str]) -> Runner:
    """Return a runner.

    Args:
        work: where the runs are kept.
        jobs: processes at a time.
        environment: variables that the processes are given.
    """
    return Runner(work, jobs, environment, pools=POOLS, identity=identity)
