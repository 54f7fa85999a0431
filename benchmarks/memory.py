"""How much memory an adaptation needs, beside the ways that others take.

    python benchmarks/memory.py --scale B --tasks 8 --more-tasks 20
    python benchmarks/memory.py --quick                 # the tiny tower, less than a minute

Each way makes one step of all tasks in a process of its own, with the same models and batches as
`speed.py`. Anonymous memory is what must be held; resident memory also counts the pages of mapped files
that are in use. Experts are made when asked for: only who keeps all of them at once pays for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from common import about, against_k, memory, save
from peers import AGAINST_K, SCALES, Ours, Paper, World, fusionbench_steps

import fusion_tinting as ft

MEGABYTE = 1e6
LEAN = {"dtype": "fp16"}
MAPPED = {"dtype": "fp16", "storage": "mmap"}
SHARDED = {"dtype": "fp16", "storage": "sharded"}
TWO = "ours, fp16, sharded over 2"
WAYS: dict[str, Callable[[World], object]] = {
    "FusionBench AdaMerging": lambda world: fusionbench_steps(world, 1),
    "paper's loop": lambda world: Paper(world, "sequential").step(),
    "paper's loop, third version": lambda world: Paper(world, "v3").step(),
    "ours": lambda world: Ours(world, update="joint").step(),
    "ours, fp16": lambda world: Ours(world, update="joint", task_vectors=LEAN).step(),
    "ours, fp16, mmap": lambda world: Ours(world, update="joint", task_vectors=MAPPED).step(),
    TWO: lambda world: Ours(world, ft.DistributedProcesses(), update="joint", task_vectors=SHARDED).step(),
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

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            anonymous, resident = memory()
            self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)


def one(way: str, scale: str, tasks: int) -> dict[str, float]:
    """Megabytes at the peak of one way, in this process."""
    torch.set_num_threads(1)
    with Peak() as peak:
        WAYS[way](World(scale, tasks, 2, "cpu"))
    return {"anonymous": peak.anonymous / MEGABYTE, "resident": peak.resident / MEGABYTE}


def in_its_own_process(way: str, scale: str, tasks: int) -> dict[str, float]:
    """The same in a fresh process, or two, that give memory back as soon as it is free."""
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


def table(found: dict) -> str:
    """Megabytes at the peak, and a peer's over ours in half precision."""
    lean = found["megabytes"]["ours, fp16"]["anonymous"]
    lines = [
        f"| scale {found['scale']}, K = {found['tasks']} | anonymous MB | resident MB | over ours, fp16 |",
        "|---|---|---|---|",
    ]
    for way, peak in found["megabytes"].items():
        ratio = peak["anonymous"] / lean
        lines.append(f"| {way} | {peak['anonymous']:.0f} | {peak['resident']:.0f} | {ratio:.2f} |")
    if "mmap_growth_mb" in found:
        lines.append(
            f"\nFrom K = {found['tasks']} to {found['more_tasks']}, resident memory with `mmap` grows by "
            f"{found['mmap_growth_mb']:.0f} MB."
        )
    return "\n".join(lines)


def measure(scale: str, tasks: int, more_tasks: int | None) -> dict:
    """Every way at one K, and the growth of ours with mapped files to another."""
    megabytes = {way: in_its_own_process(way, scale, tasks) for way in WAYS}
    lean = megabytes["ours, fp16"]["anonymous"]
    found = {
        "peak_memory_ratio": megabytes["FusionBench AdaMerging"]["anonymous"] / lean,
        "peak_memory_ratio_paper": megabytes["paper's loop"]["anonymous"] / lean,
        "scale": scale,
        "tasks": tasks,
        "megabytes": megabytes,
    }
    if more_tasks is not None:
        more = in_its_own_process("ours, fp16, mmap", scale, more_tasks)["resident"]
        found["more_tasks"] = more_tasks
        found["mmap_growth_mb"] = more - megabytes["ours, fp16, mmap"]["resident"]
    return found


def plot(scale: str, path: Path) -> None:
    """Draw the anonymous memory of every way against the number of tasks."""
    curves = {way: {k: in_its_own_process(way, scale, k)["anonymous"] for k in AGAINST_K} for way in WAYS}
    against_k(path, f"Memory held, scale {scale}", "anonymous memory, MB", curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="B", help="S: tiny tower; B: ViT-B/32")
    parser.add_argument("--tasks", type=int, default=8, help="number of experts K")
    parser.add_argument("--more-tasks", type=int, help="also the growth of `mmap` to this K")
    parser.add_argument("--quick", action="store_true", help="scale S")
    parser.add_argument("--plot", type=Path, help="draw anonymous memory against K into this file")
    parser.add_argument("--json", type=Path, help="write everything measured into this file")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--group", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = "S" if options.quick else options.scale
    if options.group is not None:
        path, rank = options.group
        torch.distributed.init_process_group("gloo", f"file://{path}", rank=int(rank), world_size=2)
    if options.one is not None:
        print(json.dumps(one(options.one, scale, options.tasks)))
        return
    found = measure(scale, options.tasks, options.more_tasks)
    print(table(found))
    if options.json is not None:
        save(options.json, {**found, **about()})
    if options.plot is not None:
        plot(scale, options.plot)


if __name__ == "__main__":
    main()
