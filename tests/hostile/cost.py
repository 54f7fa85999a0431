"""What the checks cost: time of a run beside that of another checkout, and of `--help`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
SIZES = {"small": (64, 4, 4, 100), "large": (384, 6, 8, 50)}
"""Name -> width, blocks, tasks, iterations."""
HELP = (
    ("mergekit-tint", "--help"),
    ("mergekit-tint", "learn", "--help"),
    (sys.executable, "-m", "fusion_tinting.convert", "--help"),
)

RUN = """
import copy, json, sys, time, torch
import fusion_tinting as ft
width, blocks, tasks, steps, folder = *map(int, sys.argv[1:5]), sys.argv[5]
torch.manual_seed(0)
torch.set_num_threads(1)
layers = [torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU()) for _ in range(blocks)]
base = torch.nn.Sequential(*layers)
experts, heads, inputs = {}, {}, {}
for k in range(tasks):
    experts[f"t{k}"] = copy.deepcopy(base)
    for parameter in experts[f"t{k}"].parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    heads[f"t{k}"] = torch.nn.Linear(width, 10)
    inputs[f"t{k}"] = torch.utils.data.TensorDataset(torch.randn(1000, width))
start = time.perf_counter()
ft.tint(base, experts=experts, heads=heads, unlabeled=inputs, steps=steps, run_dir=folder, progress=False)
print(json.dumps(time.perf_counter() - start))
"""


def measure(repeats: int = 3, against: Path | None = None) -> dict[str, Any]:
    """Return the least seconds of each run, here and with the package of another checkout."""
    roots = {"here": ROOT} | ({} if against is None else {"there": against})
    runs: dict[str, Any] = {}
    for size, numbers in SIZES.items():
        seconds: dict[str, list[float]] = {name: [] for name in roots}
        for _ in range(repeats):
            for name, root in roots.items():
                seconds[name].append(_run(root, numbers))
        runs[size] = {name: round(min(each), 3) for name, each in seconds.items()}
        if against is not None:
            runs[size]["slower by %"] = round(100 * (min(seconds["here"]) / min(seconds["there"]) - 1), 1)
    helps = {" ".join([Path(c[0]).name, *c[1:]]): min(_help(c) for _ in range(repeats)) for c in HELP}
    return {"seconds of a run": runs, "seconds of --help": helps}


def _run(root: Path, numbers: tuple[int, ...]) -> float:
    with TemporaryDirectory() as folder:
        paths = {"PYTHONPATH": str(root), "FUSION_TINTING_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RUN, *map(str, numbers), f"{folder}/run"]
        done = subprocess.run(
            command, env={**os.environ, **paths}, cwd=folder, capture_output=True, check=True
        )
        return float(json.loads(done.stdout))


def _help(command: tuple[str, ...]) -> float:
    start = time.perf_counter()
    paths = {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, env={**os.environ, **paths}, capture_output=True, check=True)
    return round(time.perf_counter() - start, 2)
