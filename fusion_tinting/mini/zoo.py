"""Building a zoo - data sets, base and experts - on first use, and finding it again in the cache."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from joblib.externals.loky import ProcessPoolExecutor
from torch import distributed
from tqdm.auto import tqdm

from fusion_tinting.errors import unknown
from fusion_tinting.mini import recipe as recipes
from fusion_tinting.mini.recipe import SPLITS, Build, Part, Recipe
from fusion_tinting.run.cache import cache_folder

UNFINISHED = ".unfinished"
"""Ends the names of folders that are not complete yet."""

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    **dict.fromkeys(("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "CUDA_VISIBLE_DEVICES": "",
}
"""Of the workers: one thread, no accelerator, and no output beside the one progress bar."""


def build(seed: int = 0, progress: bool = True, recipe: str | Recipe = "clip-mini_8") -> Path:
    """Return the folder of a zoo, built first where it is not cached yet.

    The folder holds `pretrained/`, `<task>/` (the expert) and `data/`; it appears in the cache only when
    complete. A second builder waits for the first; an interrupted build keeps the parts it has finished.

    Args:
        seed: All randomness follows from it: another seed gives other data and other models.
        progress: Whether to show a progress bar while building.
        recipe: Name of a recipe, one of `recipe.MODULES`; or a recipe.

    Raises:
        ValueError: The seed is not a whole number from 0, or there is no such recipe.
        RuntimeError: A part could not be made; the message names it.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"`seed` should be a whole number from 0. Found {seed!r}.")
    if isinstance(recipe, str):
        recipe = recipes.find(recipe)
    folder = folder_of(recipe, seed)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():  # else another process has built it while we waited
            unfinished = folder.with_name(folder.name + UNFINISHED)
            build_in(unfinished, recipe, seed, progress)
            os.rename(unfinished, folder)
    return folder


def load_dataset(task: str, split: str, seed: int = 0, recipe: str = "clip-mini_8") -> Any:
    """Return one split of a task: a `datasets.Dataset`; of a recipe for NYUv2 a data set of torch.

    Args:
        task: A task of the recipe, such as `mini-digits`.
        split: `train` (the expert's own), `val` (to adapt on without labels) or `test`.
        seed: Seed of the zoo.
        recipe: Name of the zoo's recipe.

    Raises:
        ValueError: There is no such task, split or recipe.
    """
    known = recipes.find(recipe)
    if task not in known.tasks:
        raise unknown("task", task, known.tasks)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return known.load_dataset(build(seed, recipe=recipe), task, split)


def folder_of(recipe: Recipe, seed: int) -> Path:
    """Return where the zoo of a recipe and seed is cached, or will be."""
    return cache_folder().absolute() / "mini" / f"{recipe.name}-{recipe.fingerprint()}-seed{seed}"


def build_in(folder: Path, recipe: Recipe, seed: int, progress: bool) -> None:
    """Make the parts of a zoo that a folder lacks, stage by stage.

    Args:
        folder: Of the zoo; made where it is missing.
        recipe: Its recipe.
        seed: Its seed.
        progress: Whether to show a progress bar.

    Raises:
        RuntimeError: A part could not be made; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stages = [[part for part in stage if not (folder / part.name).exists()] for stage in recipe.stages()]
    bar = tqdm(
        total=sum(part.steps for stage in stages for part in stage),
        desc=f"Building {recipe.name} (once, {recipe.minutes})",
        unit="step",
        disable=not progress,
    )
    # In a process of a group transformers writes no model, but in the first: others may be here alone.
    in_a_group = distributed.is_available() and distributed.is_initialized()
    with bar, _workers(recipe.workers or int(in_a_group)) as workers:
        for stage in stages:
            _make_all(stage, Build(folder, seed), workers, bar)
    for left_over in list(folder.rglob("*" + UNFINISHED)):
        shutil.rmtree(left_over)
    settings = {**asdict(recipe), "seed": seed, "version": recipe.version}
    (folder / "zoo.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


@contextmanager
def _workers(count: int) -> Iterator[Executor]:
    """Yield processes that end with the `with` block, or with this process; for 0, this process.

    They are joblib's rather than multiprocessing's, because those never import the caller's main module: a
    plain script without a main guard, a Hydra program and a test can all build.
    """
    if count == 0:
        with _one_thread(), torch.random.fork_rng(devices=[]):
            yield _ThisProcess()
        return
    workers = ProcessPoolExecutor(
        count, initializer=_begin_worker, initargs=(os.getpid(),), env=ENVIRONMENT
    )
    try:
        yield workers
    except BaseException:
        workers.shutdown(kill_workers=True)
        raise
    workers.shutdown()


class _ThisProcess(Executor):
    """Does at once what is submitted."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give torch one thread: more do not help models this small, and would make them differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin_worker(parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that happened."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make_all(stage: list[Part], build: Build, workers: Executor, bar: tqdm) -> None:
    """Make the parts of a stage; a worker adds a byte a step to a file, whose size moves the bar."""
    steps, start = build.zoo / "steps", bar.n
    steps.write_bytes(b"")
    futures = {workers.submit(_make, part, build, steps): part for part in stage}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        if advanced := start + steps.stat().st_size - bar.n:
            bar.update(advanced)
        for future in done:
            if error := future.exception():
                name = futures[future].name
                raise RuntimeError(f"Building a mini failed while making `{name}`: {error}") from error
    steps.unlink()


def _make(part: Part, build: Build, steps: Path) -> None:
    """Make a part in a worker; its folder appears only when complete."""
    target = build.zoo / part.name
    # Of this call alone: a worker of a killed build may live on for a moment.
    unfinished = target.with_name(f"{target.name}.{uuid4().hex}{UNFINISHED}")
    unfinished.mkdir(parents=True)
    with steps.open("ab", buffering=0) as file:
        part.make(build, unfinished, lambda count: file.write(b"." * count))
    try:
        os.rename(unfinished, target)
    except OSError:
        if not target.exists():  # else that worker has just made the very same
            raise
