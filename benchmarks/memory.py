"""How much memory an adaptation needs, beside the ways that others take.

    python benchmarks/memory.py --scale B --tasks 8 --more-tasks 20
    python benchmarks/memory.py --quick                 # the tiny tower, less than a minute

Each way makes one step of all tasks in a process of its own, with the same models and batches as
`speed.py`. Anonymous memory is what must be held; resident memory also counts the pages of mapped files
that are in use. Experts are created on access: only who keeps all of them at once pays for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

import torch
from helpers.command import Benchmark
from helpers.figures import against_k
from helpers.machine import memory
from helpers.peers import AGAINST_K, SCALES, Ours, Paper, World, fusionbench_steps

import fusion_tinting as ft
from fusion_tinting.reporting.tables import Table

MEGABYTE = 1e6
LEAN = {"dtype": "fp16"}
MAPPED = {"dtype": "fp16", "storage": "mmap"}
TWO = "ours, one model over 2"
WAYS: dict[str, Callable[[World], object]] = {
    "FusionBench AdaMerging": lambda world: fusionbench_steps(world, 1),
    "paper's loop": lambda world: Paper(world, "sequential").step(),
    "paper's loop, third version": lambda world: Paper(world, "v3").step(),
    "ours": lambda world: Ours(world, update="joint").step(),
    "ours, fp16": lambda world: Ours(world, update="joint", task_vectors=LEAN).step(),
    "ours, fp16, mmap": lambda world: Ours(world, update="joint", task_vectors=MAPPED).step(),
    TWO: lambda world: Ours(world, ft.DistributedProcesses(shards=True), update="joint").step(),
}
"""Name -> a step of all tasks. The last runs in two processes, of which the larger peak counts."""


class Peak:
    """The largest anonymous and resident memory of this process while the context lasts, in bytes."""

    def __enter__(self) -> "Peak":
        self.anonymous = self.resident = 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            anonymous, resident = memory()
            self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)


def one(way: str, scale: str, tasks: int) -> dict[str, float]:
    """Return megabytes at the peak of one way, in this process."""
    torch.set_num_threads(1)
    with Peak() as peak:
        WAYS[way](World(scale, tasks, 2, "cpu"))
    return {"anonymous": peak.anonymous / MEGABYTE, "resident": peak.resident / MEGABYTE}


def in_its_own_process(way: str, scale: str, tasks: int) -> dict[str, float]:
    """Return the same of a fresh process, or two, that give memory back as soon as it is free."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["--one", way, "--scale", scale, "--tasks", str(tasks)]
        ranks = ["0", "1"] if way == TWO else [None]
        started = [
            subprocess.Popen(
                [sys.executable, __file__, *asked, *(["--group", f"{folder}/group", rank] if rank else [])],
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in ranks
        ]  # fmt: skip
        ended = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        if process.returncode:
            raise SystemExit(f"{way} failed:\n{errors[-2000:]}")
    peaks = [json.loads(output.splitlines()[-1]) for output, _ in ended]
    return {kind: max(peak[kind] for peak in peaks) for kind in peaks[0]}


def table(outcome: dict) -> Table:
    """Return the table of megabytes at the peak, and of each over ours in half precision."""
    lean = outcome["megabytes"]["ours, fp16"]["anonymous"]
    rows = [
        [way, f"{peak['anonymous']:.0f}", f"{peak['resident']:.0f}", f"{peak['anonymous'] / lean:.2f}"]
        for way, peak in outcome["megabytes"].items()
    ]
    title = f"scale {outcome['scale']}, K = {outcome['tasks']}"
    growth = ""
    if "mmap_growth_mb" in outcome:
        growth = (
            f"From K = {outcome['tasks']} to {outcome['more_tasks']}, resident memory with `mmap` grows by "
            f"{outcome['mmap_growth_mb']:.0f} MB."
        )
    columns = [title, "anonymous MB", "resident MB", "over ours, fp16"]
    return Table(columns, rows, caption=growth, numeric=False)


def measure(options: argparse.Namespace) -> dict:
    """Return the peaks of every way at one K, and the growth of ours with mapped files to another."""
    scale, tasks, more_tasks = options.scale, options.tasks, options.more_tasks
    megabytes = {way: in_its_own_process(way, scale, tasks) for way in WAYS}
    lean = megabytes["ours, fp16"]["anonymous"]
    outcome = {
        "peak_memory_ratio": megabytes["FusionBench AdaMerging"]["anonymous"] / lean,
        "peak_memory_ratio_paper": megabytes["paper's loop"]["anonymous"] / lean,
        "scale": scale,
        "tasks": tasks,
        "megabytes": megabytes,
    }
    if more_tasks is not None:
        more = in_its_own_process("ours, fp16, mmap", scale, more_tasks)["resident"]
        outcome["more_tasks"] = more_tasks
        outcome["mmap_growth_mb"] = more - megabytes["ours, fp16, mmap"]["resident"]
    return outcome


def draw(options: argparse.Namespace, *_: object) -> None:
    """Draw the anonymous memory of every way against the number of tasks, if that is asked for."""
    if options.plot is not None:
        curves = {
            way: {k: in_its_own_process(way, options.scale, k)["anonymous"] for k in AGAINST_K}
            for way in WAYS
        }
        title = f"Memory held, scale {options.scale}"
        against_k(options.plot, title, "anonymous memory, MB", curves)


def check(options: argparse.Namespace) -> None:
    """Let a quick run take the tiny tower."""
    options.scale = "S" if options.quick else options.scale


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "--scale": {"choices": SCALES, "default": "B", "help": "S: tiny tower; B: ViT-B/32; L: ViT-L/14"},
        "--tasks": {"type": int, "default": 8, "help": "number of experts K"},
        "--more-tasks": {"type": int, "help": "also the growth of `mmap` to this K"},
        "--quick": {"help": "scale S"},
        "--plot": {"help": "draw anonymous memory against K into this file"},
        "--json": {},
        "--one": {"choices": WAYS, "help": argparse.SUPPRESS},
        "--group": {"nargs": 2, "help": argparse.SUPPRESS},
    },
    draw=draw,
    check=check,
)


def main() -> None:
    """Measure every way; or, in a process of its own, the one that the parent asks for."""
    options = BENCHMARK.parse()
    if options.group is not None:
        path, rank = options.group
        torch.distributed.init_process_group("gloo", f"file://{path}", rank=int(rank), world_size=2)
    if options.one is None:
        BENCHMARK.run(options)
    else:
        print(json.dumps(one(options.one, options.scale, options.tasks)))


if __name__ == "__main__":
    main()
