"""Runs `fusion_bench` as a user would, each in a process of its own, and remembers what it reported."""

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
from statistics import mean, stdev

from fusion_tinting.run.cache import cache_folder
from fusion_tinting.run.files import read_json, write_json

FUSION_BENCH = str(Path(sys.executable).parent / "fusion_bench")
READABLE = {"COLUMNS": "200", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
"""So that a line arrives when it is printed, and whole."""


ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b|In '.*Could not|Could not ")
"""How a traceback's last line begins, or Hydra's message."""


class RunFailed(RuntimeError):
    """A `fusion_bench` process ended with an error; the message is its last line."""


class MethodClock:
    """Seconds of FusionBench's `method.run`, by what it prints before and after.

    That is loading the models, zero-shot heads, merging and adaptation; neither imports nor evaluation.
    """

    def __init__(self):
        self._taskpool, self._began, self.seconds = False, None, None

    def see(self, line: str) -> None:
        if "loading task pool" in line:
            self._taskpool = True
        elif self._taskpool and self._began is None and line.startswith("╰"):  # the pool is constructed
            self._began = time.perf_counter()
        elif self._began is not None and line.startswith("No save path specified"):
            self.seconds = round(time.perf_counter() - self._began, 3)


class Runner:
    """Runs `fusion_bench`, a few processes at a time, and remembers each report by its arguments.

    Args:
        work: where the runs are kept, a folder each: `report.json`, `cost.json` and `log.txt`.
        jobs: processes at a time.
        environment: variables that they are given.
        pools: the arguments that every run has.
        identity: overrides -> everything that a run's outcome depends on, as JSON.
        failures: what a remembered failure depends on besides (default: none is remembered).
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
        """Key -> report, for every key and its overrides.

        Raises:
            RunFailed: one of the runs failed.
        """
        return dict(zip(plan, self.each(lambda item: self.one(*item), plan), strict=True))

    def each(self, what: Callable, plan: dict) -> list:
        """Call `what` with every (key, overrides), a few at a time."""
        for overrides in plan.values():
            self.folder(overrides)  # here, for Hydra composes in one thread only
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(what, plan.items()))

    def folder(self, overrides: tuple[str, ...]) -> Path:
        """Where the run with these arguments is kept."""
        content = json.dumps(self.identity(overrides))
        return self.work / hashlib.sha256(content.encode()).hexdigest()[:16]

    def one(self, name, overrides: tuple[str, ...]) -> dict:
        """The report of one run, remembered or new; raises as `all`."""
        folder = self.folder(overrides)
        reason = self.failed(overrides)
        if reason is None and not (folder / "report.json").is_file():
            reason = self._run(folder, overrides)
        if reason is not None:
            raise RunFailed(f"{name}: {reason} ({folder / 'log.txt'})")
        found = read_json(folder / "report.json")
        print(f"{_score(found)}  {found['seconds']:6.0f} s  {name}", flush=True)
        return found

    def failed(self, overrides: tuple[str, ...]) -> str | None:
        """Why this run is known to fail."""
        path = self.folder(overrides) / "failed.json"
        found = read_json(path) if path.is_file() and self.failures is not None else {}
        return found.get("reason") if found.get("depends_on") == self.failures else None

    def _run(self, folder: Path, overrides: tuple[str, ...]) -> str | None:
        """Run from an empty folder, so that all of the cost is counted; why it failed, if it did."""
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
        """The last line that names an error, remembered unless somebody stopped the run."""
        lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
        errors = [line.strip() for line in lines if ERROR.match(line)]
        reason = errors[-1] if errors else f"exit status {status}"
        if status < 0 or reason.startswith("KeyboardInterrupt"):
            return "stopped from outside"
        write_json(folder / "failed.json", {"reason": reason, "depends_on": self.failures})
        return reason


def empty_cache(work: Path) -> Path:
    """A cache folder with the user's zoos in it, and nothing else."""
    folder = work.resolve() / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    zoos = cache_folder().resolve() / "mini"
    zoos.mkdir(parents=True, exist_ok=True)
    if not (folder / "mini").is_symlink():
        (folder / "mini").symlink_to(zoos)
    return folder


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, dict]:
    """Run a command: its exit status; seconds, those of the method, and peak resident memory."""
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


def average(report: dict) -> float:
    """Mean accuracy over the tasks, in per cent."""
    return 100 * report["average"]["accuracy"]


def spread(values) -> dict:
    values = list(values)
    return {"mean": round(mean(values), 2), "sd": round(stdev(values), 2) if len(values) > 1 else None}


def shown(value: dict) -> str:
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")
