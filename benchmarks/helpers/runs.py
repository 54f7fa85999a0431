"""Runs of `fusion_bench`, started as a user would, each in a process of its own, whose reports are kept."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fusion_tinting.run.cache import cache_folder
from fusion_tinting.run.files import read_json, write_json
from helpers.averages import average

FUSION_BENCH = str(Path(sys.executable).parent / "fusion_bench")
READABLE = {"COLUMNS": "200", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
"""So that a line arrives when it is printed, and whole."""
SCORED_ON_VAL = "taskpool.test_datasets=${modelpool.val_datasets}"
ADAPTED_ON_VAL = "modelpool.test_datasets=${modelpool.val_datasets}"
"""For FusionBench's methods, which adapt on the model pool's test sets; the task pool keeps its own."""
ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b|In '.*Could not|Could not ")
"""The beginning of a traceback's last line, or of Hydra's message."""


class RunFailed(RuntimeError):
    """A `fusion_bench` process ended with an error; the message is its last line."""


class MethodClock:
    """The `seconds` of FusionBench's `method.run`, by what it prints before and after.

    These are loading the models, zero-shot heads, merging and adaptation; neither imports nor evaluation.
    """

    def __init__(self) -> None:
        self._taskpool, self._began, self.seconds = False, None, None

    def see(self, line: str) -> None:
        """Look at a line that FusionBench prints."""
        if "loading task pool" in line:
            self._taskpool = True
        elif self._taskpool and self._began is None and line.startswith("╰"):  # the pool is constructed
            self._began = time.perf_counter()
        elif self._began is not None and line.startswith("No save path specified"):
            self.seconds = round(time.perf_counter() - self._began, 3)


class Runner:
    """Runs `fusion_bench`, a few processes at a time, and keeps each report by its arguments.

    Args:
        work: where the runs are kept, a folder each: `report.json`, `cost.json` and `log.txt`.
        jobs: processes at a time.
        environment: variables that they are given.
        pools: the arguments that every run has.
        identity: overrides -> everything that a run's outcome depends on, as JSON.
        failures: what a failure that is kept depends on besides (default: none is kept).
        fresh_cache: give every run a cache of its own, so that none profits from another.
    """

    def __init__(
        self,
        work: Path,
        jobs: int,
        environment: dict[str, str],
        *,
        pools: tuple[str, ...],
        identity: Callable[[tuple[str, ...]], object],
        failures: str | None = None,
        fresh_cache: bool = False,
    ):
        self.work, self.jobs, self.environment = work.resolve(), jobs, environment
        self.pools, self.identity = pools, identity
        self.failures, self.fresh_cache = failures, fresh_cache

    def all(self, plan: dict) -> dict:
        """Return key -> report of every run.

        Args:
            plan: key -> overrides of a run.

        Raises:
            RunFailed: one of the runs failed.
        """
        return dict(zip(plan, self.each(lambda item: self.one(*item), plan), strict=True))

    def each(self, work: Callable, plan: dict) -> list:
        """Call `work` with every (key, overrides) of a plan, a few at a time, and return the results."""
        for overrides in plan.values():
            self.folder(overrides)  # here, for Hydra composes in one thread only
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(work, plan.items()))

    def folder(self, overrides: tuple[str, ...]) -> Path:
        """Return the folder of the run with these arguments."""
        content = json.dumps(self.identity(overrides))
        return self.work / hashlib.sha256(content.encode()).hexdigest()[:16]

    def one(self, name: object, overrides: tuple[str, ...]) -> dict:
        """Return the report of one run, kept or new; raises as `all`."""
        folder = self.folder(overrides)
        reason = self.failed(overrides)
        if reason is None and not (folder / "report.json").is_file():
            reason = self._run(folder, overrides)
        if reason is not None:
            raise RunFailed(f"{name}: {reason} ({folder / 'log.txt'})")
        report = read_json(folder / "report.json")
        print(f"{_score(report)}  {report['seconds']:6.0f} s  {name}", flush=True)
        return report

    def failed(self, overrides: tuple[str, ...]) -> str | None:
        """Return why this run is known to fail, if it is."""
        path = self.folder(overrides) / "failed.json"
        failure = read_json(path) if path.is_file() and self.failures is not None else {}
        return failure.get("reason") if failure.get("depends_on") == self.failures else None

    def _run(self, folder: Path, overrides: tuple[str, ...]) -> str | None:
        """Run from an empty folder, so that all of the cost is counted; return why it failed, if it did."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        partial = folder / "report.partial"
        command = [FUSION_BENCH, *self.pools, *overrides, f"report_save_path={partial}"]
        cache = {"FUSION_TINTING_CACHE": str(empty_cache(folder))} if self.fresh_cache else {}
        status, cost = timed(command, folder, {**self.environment, **cache, **READABLE})
        if status:
            return self._failure(folder, status)
        write_json(folder / "cost.json", cost)
        write_json(folder / "report.json", {**read_json(partial), "seconds": cost["seconds"]})
        return None

    def _failure(self, folder: Path, status: int) -> str:
        """Return the last line that names an error, and keep it unless somebody stopped the run."""
        lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
        errors = [line.strip() for line in lines if ERROR.match(line)]
        reason = errors[-1] if errors else f"exit status {status}"
        if status < 0 or reason.startswith("KeyboardInterrupt"):
            return "stopped from outside"
        write_json(folder / "failed.json", {"reason": reason, "depends_on": self.failures})
        return reason


def empty_cache(work: Path) -> Path:
    """Return a cache folder in `work` with the user's zoos in it, and nothing else."""
    folder = work.resolve() / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    zoos = cache_folder().resolve() / "mini"
    zoos.mkdir(parents=True, exist_ok=True)
    if not (folder / "mini").is_symlink():
        (folder / "mini").symlink_to(zoos)
    return folder


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, dict]:
    """Run a command; return its exit status, and its cost.

    Args:
        command: the program and its arguments.
        folder: where it runs, and where `log.txt` goes.
        environment: variables besides those of this process.

    Returns:
        the exit status; `seconds`, `method_seconds` (see `MethodClock`) and `peak_memory_mb` (resident).
    """
    clock, start = MethodClock(), time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip
    with open(folder / "log.txt", "w", encoding="utf-8") as log, process.stdout:
        for line in process.stdout:
            log.write(line)
            clock.see(line)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, {
        "seconds": round(time.perf_counter() - start, 1),
        "method_seconds": clock.seconds,
        "peak_memory_mb": round(usage.ru_maxrss / 1e3, 1),
    }


def _score(report: dict) -> str:
    return f"{average(report):6.2f}" if "accuracy" in report.get("average", {}) else " " * 6
