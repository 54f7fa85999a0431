"""How many bytes a parameter `mergekit-tint learn` holds at its peak, on a language model of bfloat16.

    python benchmarks/sizes.py                # a Llama of 173 M parameters, K = 3 and 8: about an hour
    python benchmarks/sizes.py --quick        # one of 2 M: minutes; what is not of the model counts more

The command runs in a process of its own, from its start to the last line of its report, with two steps of
all tasks in batches of 2 x 64 tokens and the last block as tint. Counted is anonymous memory (mapped
files are the system's to drop) above that of a process that has imported the same and has done nothing, and
without the optimizer's two numbers for each of a tint's. Of two processes that share the model the one
counts that holds more.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import or_
from pathlib import Path

from helpers.command import Benchmark
from helpers.llamas import SIZES, configuration, world
from helpers.machine import watch
from safetensors import safe_open

from fusion_tinting.reporting.tables import Table

STEPS, TOKENS, BATCH, REPORTED = 2, 64, 2, 2
BARS = {("memory", 3): 12, ("stream", 3): 5, ("memory", 8): 22, ("stream", 8): 5}
"""(storage, K) -> bytes a parameter at most."""
LLAMAS = {"7 B": (6.74e9, 32), "13 B": (13.0e9, 40), "70 B": (69.0e9, 80)}
"""Name -> parameters and blocks."""
PHASES = re.compile(
    r"(?P<loading>Models and data|Adaptation)|(?P<learning>Expert [^\r\n]*100%|Tinting:)"
    r"|(?P<teaching>Expert )|(?P<writing>Pictures)|(?P<report>Report)"
)
"""What the command says when it begins something."""
SHARE = 0.56
"""What each of two processes may hold of what one does."""
IMPORTED = """
import time, torch.distributed.fsdp, datasets, transformers.models.llama.modeling_llama
import fusion_tinting.mergekit.learn
from fusion_tinting.mergekit import report
time.sleep(0.2)
"""
PORT = 29519
LEARN = [str(Path(sys.executable).with_name("mergekit-tint")), "learn"]


def peaks(command: list[str], count: int = 1) -> Counter[str]:
    """Return the largest anonymous memory of a command in each of its phases, in bytes.

    With a count, of that many processes that share one model, as `torchrun` starts them.
    """
    with tempfile.TemporaryFile("w+b") as log:
        seen = {0: "loading"}

        def phase() -> str:
            """Return the phase of what was said last."""
            end = os.fstat(log.fileno()).st_size
            if end not in seen:
                said = os.pread(log.fileno(), 4096, max(0, end - 4096)).decode(errors="replace")
                begun = [each.lastgroup for each in PHASES.finditer(said)]
                seen[end] = begun[-1] if begun else seen[max(seen)]
            return seen[end]

        started = [
            subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **_member(rank, count)})
            for rank in range(count)
        ]
        with ThreadPoolExecutor(count) as threads:
            watched = list(threads.map(lambda process: watch(process.pid, phase), started))
        for process, (_, status, _) in zip(started, watched, strict=True):
            process.returncode = os.waitstatus_to_exitcode(status)
        if any(process.returncode for process in started):
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode()[-2000:]}")
    return reduce(or_, (largest for largest, _, _ in watched))


def _member(rank: int, count: int) -> dict[str, str]:
    """Return what `torchrun` puts into the environment of one of several processes."""
    if count == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": PORT}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def one(folder: Path, storage: str, count: int, processes: int, baseline: float) -> dict[str, object]:
    """Return bytes a parameter, of all and of each phase, and seconds, of one run."""
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FUSION_TINTING_CACHE"] = temporary
        path = configuration(
            folder, count, TOKENS, steps=STEPS, batch_size=BATCH, layer="block:-1", lr_tints=1e-3,
            task_vectors={"storage": storage},
        )  # fmt: skip
        run = Path(temporary) / "run"
        held = peaks([*LEARN, str(path), str(run), "--report", str(REPORTED)], processes)
        tints = sum(numbers(file) for file in (run / "tints").glob("*.safetensors"))
        seconds = json.loads((run / "tinting.json").read_text())["seconds"]
    parameters = numbers(folder / "base" / "model.safetensors")
    held["learning"] -= 8 * tints // processes
    phases = {name: (top - baseline) / parameters for name, top in held.items()}
    return {
        "bytes": max(phases.values()),
        "phases": phases,
        "tints": 4 * tints / parameters,
        "seconds": seconds,
    }


def numbers(file: Path) -> int:
    """Return how many numbers a safetensors file holds."""
    with safe_open(file, "pt") as tensors:
        shapes = (tensors.get_slice(name).get_shape() for name in tensors.keys())  # noqa: SIM118
        return sum(map(math.prod, shapes))


def measure(options: argparse.Namespace) -> dict:
    """Return the figures of every storage and K."""
    folder = options.work / options.size
    folder.mkdir(parents=True, exist_ok=True)
    world(folder, options.size, max(options.tasks), TOKENS)
    baseline = max(peaks([sys.executable, "-c", IMPORTED]).values())
    runs = [
        {
            "storage": storage, "tasks": count, "processes": ranks,
            **one(folder, storage, count, ranks, baseline),
        }
        for count in options.tasks
        for storage, ranks in (("memory", 1), ("memory", 2), ("stream", 1))
    ]  # fmt: skip
    return {
        "size": options.size,
        "parameters": numbers(folder / "base" / "model.safetensors"),
        "interpreter_bytes": baseline,
        "runs": runs,
    }


def table(outcome: dict) -> list[Table]:
    """Return the table of what was measured, and that of what follows for larger models."""
    rows = [
        [
            *_kind(run), f"{run['bytes']:.1f}", _bar(run, outcome["runs"]),
            f"{run['tints'] / run['processes']:.1f}", f"{run['seconds']:.0f}",
        ]
        for run in outcome["runs"]
    ]  # fmt: skip
    measured = Table(
        ["storage", "K", "processes", "bytes a parameter", "at most", "of these tints", "seconds"],
        rows,
        title=f"`mergekit-tint learn`, {outcome['parameters'] / 1e6:.0f} M parameters, bfloat16",
        numeric=False,
    )
    phases = Table(
        ["storage", "K", "processes", *outcome["runs"][0]["phases"]],
        [[*_kind(run), *(f"{held:.1f}" for held in run["phases"].values())] for run in outcome["runs"]],
        title="Bytes a parameter at the peak of each phase",
        numeric=False,
    )
    larger = Table(
        [
            "model",
            "K",
            "`memory`, GB",
            "`host`, GB on the GPU + beside",
            "`stream`, GB",
            "of these tints",
        ],
        [_larger(name, *LLAMAS[name], count) for name in LLAMAS for count in (3, 8)],
        title="What follows for larger models, one block as tint, without activations",
        caption="θ(λ) 2 bytes a parameter, θ₀ and each expert 2 more where they are kept; a tint 12 bytes "
        "a parameter of its block, with its optimizer.",
        numeric=False,
    )
    return [measured, phases, larger]


def _kind(run: dict) -> list[object]:
    return [run["storage"], run["tasks"], run["processes"]]


def _bar(run: dict, runs: list[dict]) -> str:
    """Return how much a run may hold; of several processes each, a share of what one does."""
    if run["processes"] == 1:
        return str(BARS.get((run["storage"], run["tasks"]), ""))
    alone = [each["bytes"] for each in runs if _kind(each) == [*_kind(run)[:2], 1]]
    return f"{SHARE * alone[0]:.1f}" if alone else ""


def _larger(name: str, parameters: float, blocks: int, count: int) -> list[object]:
    tints = 12 * count * parameters / blocks / 1e9
    model, experts = 2 * parameters / 1e9, 2 * (count + 1) * parameters / 1e9
    held, beside = model + tints, f"{experts:.0f}"
    return [
        name, count, f"{held + experts:.0f}", f"{held:.0f} + {beside}", f"{held:.0f}", f"{tints:.0f}",
    ]  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Let a quick run take the smallest model and one K."""
    if options.quick:
        options.size, options.tasks = "2M", [3]
    options.work = options.work or Path(tempfile.gettempdir()) / "fusion_tinting_sizes"


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "--size": {"choices": SIZES, "default": "170M", "help": "of the Llama"},
        "--tasks": {"type": int, "nargs": "+", "default": [3, 8], "help": "numbers of experts K"},
        "--work": {"help": "where the models are kept"},
        "--quick": {"help": "2 M parameters, K = 3"},
        "--json": {},
    },
    check=check,
)

if __name__ == "__main__":
    BENCHMARK.main()
