"""A process that does jobs of a build: reads one JSON job a line, answers with JSON lines.

A process of its own, started as ``python -m fusion_tinting.mini._worker``, rather than
multiprocessing: it works from a plain script, a Hydra program and a test alike, since it never
imports the caller's main module; and the caller's thread settings do not matter.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Do jobs until standard input ends, which it also does when the caller dies."""
    # Answers go to the real standard output; whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**message) -> None:
        answers.write(json.dumps(message) + "\n")

    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for line in sys.stdin:
        do(json.loads(line), lambda steps: answer(advance=steps))
        answer(done=True)


def do(job: dict, advance) -> None:
    """Make the folder that the job names; it appears only when complete."""
    from . import data, training
    from .once import UNFINISHED
    from .recipe import Recipe
    from .tasks import TASKS

    recipe = Recipe(**{**job["recipe"], "tasks": tuple(job["recipe"]["tasks"])})
    zoo, seed = Path(job["zoo"]), job["seed"]
    target = zoo / job["makes"]
    # Of this process alone: a worker of an interrupted build may live on for a moment.
    unfinished = target.with_name(f"{target.name}.{os.getpid()}{UNFINISHED}")
    unfinished.mkdir(parents=True)
    if job["kind"] == "data":
        data.write(recipe, TASKS[job["task"]], unfinished, seed)
        advance(1)
    elif job["kind"] == "pretrain":
        training.pretrain(recipe, seed, unfinished, advance)
    elif job["kind"] == "expert":
        train = data.read_arrays(zoo, job["task"], "train")
        training.finetune(recipe, TASKS[job["task"]], train, zoo, unfinished, seed, advance)
    else:
        raise AssertionError(job)
    try:
        os.rename(unfinished, target)
    except OSError:
        if not target.exists():  # else that worker has just made the very same
            raise


if __name__ == "__main__":
    main()
