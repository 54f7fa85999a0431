"""Building a zoo - data, pre-trained model and experts - on first use, and finding it again."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from fusion_tinting.errors import unknown

from . import data
from . import recipe as recipes
from .once import built_once, require_seed
from .recipe import Recipe

WORKERS = 2
"""Processes that build at the same time, one thread each: threads do not help models this small."""


def zoo_name(recipe: Recipe, seed: int) -> str:
    """The folder of the zoo of a recipe and seed."""
    return f"{recipe.name}-{recipe.fingerprint()}-seed{seed}"


def build(seed: int = 0, progress: bool = True, recipe: str | Recipe = "clip-mini_8") -> Path:
    """The folder of a zoo, built first where it is not cached yet.

    The folder holds ``pretrained/`` (a complete CLIP with its processor), ``<task>/`` (the expert's
    vision tower) and ``data/<task>/{train,val,test}``. It appears in the cache only when complete.
    A second builder waits for the first; an interrupted build keeps the parts it has finished.

    Args:
        seed: All randomness follows from it: another seed gives other images and other models.
        progress: Whether to show a progress bar while building.
        recipe: Name of a recipe, one of `recipe.RECIPES`; or a recipe.
    """
    require_seed(seed)
    if isinstance(recipe, str):
        recipe = recipes.find(recipe)
    return built_once(zoo_name(recipe, seed), lambda folder: _build_in(folder, recipe, seed, progress))


def load_dataset(task: str, split: str, seed: int = 0, recipe: str = "clip-mini_8"):
    """One split of a task as a `datasets.Dataset` with features `image` and `label`.

    Args:
        task: A task of the recipe, such as ``mini-digits``.
        split: ``train`` (the experts' own), ``val`` (to adapt on without labels) or ``test``.
        seed: The zoo's seed.
        recipe: The zoo's recipe.
    """
    known = recipes.find(recipe).tasks
    if task not in known:
        raise unknown("task", task, known)
    return data.read(build(seed, recipe=recipe), task, split)


def _build_in(folder: Path, recipe: Recipe, seed: int, progress: bool) -> None:
    from tqdm import tqdm

    def job(kind: str, makes: str, steps: int, task: str | None = None) -> dict:
        shared = {"zoo": str(folder), "seed": seed, "recipe": asdict(recipe)}
        return {"kind": kind, "makes": makes, "steps": steps, "task": task, **shared}

    (folder / "data").mkdir(exist_ok=True)
    tasks = recipe.tasks
    first = [job("pretrain", "pretrained", recipe.pretrain_steps + len(tasks))]
    first += [job("data", f"data/{task}", 1, task) for task in tasks]
    then = [job("expert", task, recipe.expert_steps, task) for task in tasks]
    missing = [job for job in first + then if not (folder / job["makes"]).exists()]
    bar = tqdm(
        total=sum(job["steps"] for job in missing),
        desc=f"Building {recipe.name} (once, {recipe.minutes})",
        unit="step",
        disable=not progress,
    )
    with bar, _Workers(bar, folder / "build.log") as workers:
        workers.do([job for job in first if job in missing])
        workers.do([job for job in then if job in missing])
    settings = {**asdict(recipe), "seed": seed, "version": recipes.VERSION}
    (folder / "zoo.json").write_text(json.dumps(settings, indent=2))


def _start_worker(log) -> subprocess.Popen:
    package_parent = str(Path(__file__).parents[2])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {
        **os.environ,
        **one_thread,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fusion_tinting.mini._worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )


class _Workers:
    """A few worker processes that share lists of jobs and never outlive the ``with`` block."""

    def __init__(self, bar, log: Path):
        self._bar, self._log = bar, log
        self._advance = threading.Lock()

    def __enter__(self) -> _Workers:
        self._log_file = self._log.open("w")
        self._processes = [_start_worker(self._log_file) for _ in range(WORKERS)]
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # a job that it never read
                process.stdin.close()
        self._log_file.close()
        self._log.unlink()

    def do(self, jobs: list[dict]) -> None:
        """Do all the jobs, taken in order by whichever worker is free; raise if one fails."""
        todo: queue.SimpleQueue[dict] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)
        failures: list[str] = []
        threads = [
            threading.Thread(target=self._serve, args=(process, todo, failures), daemon=True)
            for process in self._processes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError(f"Building the mini benchmark failed while making {failures[0]}")

    def _serve(self, process: subprocess.Popen, todo: queue.SimpleQueue, failures: list[str]) -> None:
        while not failures:
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            if not self._finished(process, job):
                failures.append(f"{job['makes']}:\n{self._log.read_text()[-3000:]}")

    def _finished(self, process: subprocess.Popen, job: dict) -> bool:
        """Send a job and follow its progress; False if the process ended before it was done."""
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return False
        for line in process.stdout:
            message = json.loads(line)
            if "done" in message:
                return True
            with self._advance:
                self._bar.update(message["advance"])
        return False
