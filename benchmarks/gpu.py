"""What merges and training steps cost on a GPU, beside the ways that others take.

    python benchmarks/gpu.py --json gpu.json            # about ten minutes on one GPU
    python benchmarks/gpu.py --only llama passes --json gpu.json
    python benchmarks/gpu.py --quick --device cpu       # a rehearsal with tiny models, less than a minute

Parts follow one another; one that fails, for want of memory say, is noted with its reason, and one for
which no time is left is skipped. Ways take turns in blocks: each is set up alone on the device, makes one
step that does not count and then those that do, and is freed; so its peak memory is its own. Ways that
compute the same must agree in λ. Models and peers are those of `helpers/peers.py`. Float32 is without TF32.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from helpers.command import Benchmark, save
from helpers.gpu_costs import (
    Unhashed,
    bandwidth,
    count_peak_anew,
    hashing,
    llama,
    numerics,
    peak,
    settle,
    split,
)
from helpers.machine import about
from helpers.peers import Ours, Paper, Passes, World, fusionbench_steps, timed
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.files import read_json

ERROR = {"32-true": 1e-3, "bf16-mixed": 4e-3}
"""Relative error of λ up to which two ways are the same. In float32 that of `speed.py`: kernels sum in
other orders, and Adam makes as large a step of a small gradient as of a large one. In bfloat16 a pass
rounds to eight bits, so that gradients near zero have another sign in each way: a fifth of what opposite
signs everywhere would give after three steps."""
FUSIONBENCH = "FusionBench entropy"
WAYS: dict[str, Callable[[World], object]] = {
    "paper sequential": lambda world: Paper(world, "sequential"),
    "paper v3": lambda world: Paper(world, "v3"),
    "paper joint": lambda world: Paper(world, "joint"),
    "ours entropy": lambda world: Ours(world, objective="entropy", layer=None, update="joint"),
    "ours sequential": lambda world: Ours(world, objective="hard", update="sequential"),
    "ours joint": lambda world: Ours(world, objective="hard", update="joint"),
    "encoder alone": lambda world: Passes(world, world.pretrained),
}
PEERS = {
    FUSIONBENCH: "ours entropy",
    "paper sequential": "ours sequential",
    "paper v3": "ours sequential",
    "paper joint": "ours joint",
}
"""A peer's way -> ours that computes the same."""
EVERY = (FUSIONBENCH, *WAYS)
FEWER = (FUSIONBENCH, "paper v3", "ours entropy", "ours sequential", "encoder alone")
"""Where a step of the paper's loop takes ten seconds."""


@dataclass(frozen=True)
class Config:
    """What the steps of one part are measured on: `blocks` turns, each of a first and `steps` more."""

    scale: str
    tasks: int
    precision: str
    blocks: int = 2
    steps: int = 4
    ways: tuple[str, ...] = EVERY

    def __str__(self) -> str:
        return f"{self.scale}, K = {self.tasks}, {self.precision}"


SMALL = [
    Config("B", 8, "32-true"),
    Config("B", 8, "bf16-mixed", steps=2),
    Config("B", 20, "32-true", blocks=1, steps=2, ways=FEWER),
]
TOGETHER = [Config(scale, k, p) for p in ERROR for scale, k in (("S", 8), ("B", 8), ("B", 20), ("L", 8))]
TRIED = [Config("S", 2, precision, blocks=1, steps=2) for precision in ERROR]
"""The rehearsal."""
LARGE = [
    Config("L", 8, "bf16-mixed", blocks=1, steps=2),
    Config("L", 20, "bf16-mixed", blocks=1, steps=1, ways=FEWER),
    Config("L", 8, "32-true", blocks=1, steps=1, ways=FEWER),
    Config("L", 20, "32-true", blocks=1, steps=1, ways=FEWER),
]


def steps(config: Config, device: torch.device) -> dict:
    """Return step times, peak memory and λ's agreement of every way, in turns."""
    world = Unhashed(config.scale, config.tasks, config.steps + 1, str(device), config.precision)
    seconds, peaks, lams, failed = {way: [] for way in config.ways}, {}, {}, {}
    for _ in range(config.blocks):
        for way in (way for way in config.ways if way not in failed):
            try:
                one, peaks[way], lams[way] = alone(world, way, config.steps + 1)
                seconds[way] += one[1:]
            except RuntimeError as error:  # of memory, above all
                failed[way] = first_line(error)
    half = {way: median(values) for way, values in seconds.items() if values}
    return {
        "milliseconds": {way: 1e3 * value for way, value in half.items()},
        "ratios": {
            peer: half[peer] / half[ours] for peer, ours in PEERS.items() if {peer, ours} <= {*half}
        },
        "peak_gb": peaks,
        "agreement": agreement(lams, ERROR[config.precision]),
        "failed": failed,
        "seconds": seconds,
    }


def alone(world: World, way: str, count: int) -> tuple[list[float], float | None, Tensor | None]:
    """Return the seconds of each of `count` steps of a way, its peak memory, and its λ after them."""
    if not way.startswith("ours"):
        world._vectors.clear()
    settle(world.device)
    if way == FUSIONBENCH:
        seconds, lam = fusionbench_steps(world, count)
    else:
        work = WAYS[way](world)
        seconds = [timed(world.device, work.step) for _ in range(count)]
        lam = work.lam() if hasattr(work, "lam") else None
    return seconds, peak(world.device), lam


def agreement(lams: dict[str, Tensor | None], most: float) -> dict:
    """Return of each peer's λ and ours the relative error, and the cosine between their ways from 0.3."""
    compared = {}
    for peer, ours in PEERS.items():
        if peer in lams and ours in lams:
            theirs, own = lams[peer].double(), lams[ours].double()
            error = float((own - theirs).norm() / theirs.norm())
            cosine = float(cosine_similarity((own - 0.3).ravel(), (theirs - 0.3).ravel(), 0))
            same = {"most": most, "same": error <= most}
            compared[peer] = {"relative_error": error, **same, "cosine": cosine}
    return compared


def passes(config: Config, device: torch.device) -> dict:
    """Return times of joint steps with one, two, four... tasks a pass, and how many the engine takes."""
    settle(device)
    counts = [count for count in (1, 2, 4, 8, 20) if count <= config.tasks]
    world = Unhashed(config.scale, config.tasks, config.steps * len(counts), str(device), config.precision)
    ours = WAYS["ours joint"](world)
    own, one = ours.adaptation.numbers_at_once, world.inputs[world.tasks[0]][: world.batch].numel()
    seconds, peaks = {count: [] for count in counts}, {}
    for _ in range(config.steps):
        for count in counts:
            ours.adaptation.numbers_at_once = count * one
            count_peak_anew(device)
            seconds[count].append(timed(device, ours.step))
            peaks[count] = peak(device)
    half = {count: 1e3 * median(values[1:]) for count, values in seconds.items()}
    return {"engine_takes": min(config.tasks, own // one), "milliseconds": half, "peak_gb": peaks}


def parts(device: torch.device, quick: bool) -> dict[str, Callable[[], dict]]:
    """Return name -> work of every part, the longest last."""
    small, large = (TRIED, []) if quick else (SMALL, LARGE)
    towers = [("S", 2)] if quick else [(scale, k) for scale in "BL" for k in (8, 20)]
    joined = TRIED if quick else TOGETHER
    one = small[0]
    first: dict[str, Callable[[], dict]] = {
        "exactness": partial(numerics, device),
        "content hash": partial(hashing, device, quick),
        **{f"bandwidth {s}, K = {k}": partial(bandwidth, s, k, device) for s, k in towers},
        **{f"passes {config}": partial(passes, config, device) for config in joined},
    }
    for update in ("joint", "sequential"):
        for precision in ERROR:
            name = f"split {update} {one.scale}, K = {one.tasks}, {precision}"
            first[name] = partial(split, one.scale, one.tasks, precision, update, device)
    llamas = {
        f"llama {update}": partial(llama, update, device, quick) for update in ("joint", "sequential")
    } | {
        f"llama of bfloat16, {storage}": partial(llama, "sequential", device, quick, storage)
        for storage in ("memory", "host")
    }
    return (
        first | llamas | {f"steps {config}": partial(steps, config, device) for config in (*small, *large)}
    )


def tables(outcome: dict) -> list[Table]:
    """Return the tables of steps, of joint steps by the tasks that share a pass, and of memory's speed."""
    return [of_steps(outcome), of_passes(outcome), of_bandwidth(outcome)]


def of_kind(outcome: dict, kind: str) -> dict[str, dict]:
    """Return the results of the parts of a kind, by their names without it."""
    names = [name for name, part in outcome.items() if name.startswith(kind) and len(part) > 2]
    return {name.removeprefix(kind).strip(): outcome[name] for name in names}


def of_steps(outcome: dict) -> Table:
    """Return the table of steps, of peers and ours."""
    rows = []
    for name, part in of_kind(outcome, "steps").items():
        for peer, ratio in part["ratios"].items():
            ways = peer, PEERS[peer]
            times = [f"{part['milliseconds'][way]:.0f}" for way in ways]
            peaks = [part["peak_gb"].get(way) for way in ways]
            held = [f"{gigabytes:.1f}" if gigabytes else "" for gigabytes in peaks]
            rows.append([f"{name}: {peer}", *times, f"{ratio:.1f}", *held])
    return Table(["", "peer, ms", "ours, ms", "ratio", "peer, GB", "ours, GB"], rows, numeric=False)


def of_passes(outcome: dict) -> Table:
    """Return the table of joint steps by the number of tasks that share a pass."""
    counts = ["1", "2", "4", "8", "20"]
    rows = []
    for name, part in of_kind(outcome, "passes").items():
        times = {str(count): f"{value:.0f}" for count, value in part["milliseconds"].items()}
        rows.append([name, *(times.get(count, "") for count in counts)])
    return Table(["tasks a pass", *counts], rows, numeric=False)


def of_bandwidth(outcome: dict) -> Table:
    """Return the table of merges and their gradients."""
    rows = []
    for name, part in of_kind(outcome, "bandwidth").items():
        for dtype in (dtype for dtype, kind in part.items() if isinstance(kind, dict)):
            half, cells = part[dtype]["milliseconds"], []
            for kind in ("merge", "gradient"):
                speed = f"{part[dtype][kind + '_gb_per_s']:.0f}"
                cells += [f"{half[kind]:.1f}", speed, f"{half['naive ' + kind]:.0f}"]
            rows.append([f"{name}, {dtype}", *cells])
    columns = ["merge, ms", "GB/s", "formula, ms", "∂λ, ms", "GB/s", "autograd, ms"]
    return Table(["", *columns], rows, numeric=False)


def measure(options: argparse.Namespace) -> dict:
    """Return the results of the parts that are asked for, each of which is saved once it is done."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, start = torch.device(options.device), time.perf_counter()
    added_to = options.only and options.json is not None and options.json.is_file()
    outcome = read_json(options.json) if added_to else {}
    outcome |= {**about(options.device), "cuda": torch.version.cuda, "tf32": False}
    for name, part in parts(device, options.quick).items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        outcome[name] = measured(name, part, start + options.budget - time.perf_counter())
        if options.json is not None:
            save(options.json, outcome)
    require_agreement(outcome)
    return outcome


def require_agreement(outcome: dict) -> None:
    """Stop if ours and a peer did not compute the same; what was measured is saved by then."""
    for name, part in of_kind(outcome, "steps").items():
        for peer, compared in part["agreement"].items():
            if not compared["same"]:
                error = compared["relative_error"]
                raise SystemExit(f"Ours and {peer} differ in λ at {name}: relative error {error:.1e}.")


def check(options: argparse.Namespace) -> None:
    """Refuse a GPU where there is none."""
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ValueError("there is no GPU here; `--quick --device cpu` rehearses without one")


def measured(name: str, part: Callable[[], dict], left: float) -> dict:
    """Return the results of a part and how long it takes; or why it has none."""
    start = time.perf_counter()
    try:
        result = part() if left > 0 else {"skipped": "no time was left"}
    except Exception as error:  # whatever it is, the other parts go on
        result = {"failed": first_line(error)}
    result["took_seconds"] = round(time.perf_counter() - start, 1)
    print(f"{result['took_seconds']:6.1f} s  {name}  {result.get('failed') or ''}", flush=True)
    return result


def first_line(error: Exception) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


BENCHMARK = Benchmark(
    __doc__,
    measure,
    tables,
    options={
        "--device": {"default": "cuda"},
        "--quick": {"help": "tiny models, few steps"},
        "--budget": {"type": float, "default": 600, "help": "seconds after which no part is begun"},
        "--only": {"nargs": "+", "default": [], "help": "beginnings of parts' names; `--json` is added to"},
        "--json": {},
    },
    check=check,
)

if __name__ == "__main__":
    BENCHMARK.main()
