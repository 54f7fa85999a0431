"""How fast a merge, its gradient and a whole training step are, beside the ways that others take.

    python benchmarks/speed.py --scale S --tasks 8      # or --scale B, a ViT-B/32
    python benchmarks/speed.py --quick                  # less than a minute
    python benchmarks/speed.py --plot against_k.png     # step times for several numbers of tasks

Peers and ours take turns in one process, on the same models and batches, and must agree in what they
compute. Ratios are a peer's median time over ours: above 1 ours is faster. On a CPU it is CPU time.
*Same tower* is the ratio if ours, too, computed every token of the last block: what that takes more,
measured without an engine, is added to ours. The peers are in `helpers/peers.py`.
"""

import argparse
from collections.abc import Callable
from itertools import count
from statistics import median

import torch
from helpers.command import Benchmark
from helpers.figures import against_k
from helpers.peers import AGAINST_K, SCALES, Ours, Paper, Passes, World, fusionbench_steps, now, timed
from torch import Tensor

import fusion_tinting as ft
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.processes import fitting_heap

RATIO = {
    "joint": "step_ratio_paper",
    "sequential": "step_ratio_paper_sequential",
    "v3": "step_ratio_paper_v3",
}
TURN = 2
"""Steps in a turn, of which the last counts."""


def merges(world: World, rounds: int) -> dict[str, list[float]]:
    """Return times of θ(λ) and of ∂λ, by the formula under autograd and by the fast path, in turns."""
    vectors = world.vectors()
    lam = torch.rand(len(vectors.slots), len(world.tasks), device=world.device, requires_grad=True)
    gradient = torch.randn_like(vectors.base)
    out, views = torch.empty_like(vectors.base), vectors.views(gradient)
    seconds: dict[str, list[float]] = {name: [] for name in ("naive θ", "ours θ", "naive ∂λ", "ours ∂λ")}
    for _ in range(rounds):
        start = now(world.device)
        naive = ft.merge_reference(vectors, lam)
        seconds["naive θ"].append(now(world.device) - start)
        seconds["ours θ"].append(timed(world.device, lambda: ft.merge(vectors, lam, out)))
        lam.grad = None
        start = now(world.device)
        torch.autograd.backward(list(naive.values()), list(views.values()))
        seconds["naive ∂λ"].append(now(world.device) - start)
        start = now(world.device)
        ours = ft.coefficient_gradient(vectors, views)
        seconds["ours ∂λ"].append(now(world.device) - start)
        agree("θ(λ)", vectors.views(out)[vectors.names[-1]], naive[vectors.names[-1]].detach(), 1e-5)
        agree("∂λ", ours, lam.grad, 1e-4)
    return seconds


def steps(world: World, rounds: int) -> dict[str, list[float]]:
    """Return times of training steps, of each peer and ours in turns; λ of both must agree at the end.

    One peer follows another, for at scale B no two peers fit beside each other in 24 GB.
    """
    seconds = against_fusionbench(world, rounds + 1)
    for kind in world.kinds:
        seconds |= against_paper(world, rounds + 1, kind)
    return {name: values[1:] for name, values in seconds.items()}  # the first turn warmed up


def our_turn(world: World, step: Callable[[], object]) -> float:
    """Return the time of a turn with memory handled as `adapt` does around its steps."""
    with fitting_heap(sum(p.numel() for p in world.pretrained.parameters()), world.device):
        return turn(world, step)


def turn(world: World, step: Callable[[], object]) -> float:
    """Return the time of a turn's last step; the earlier find caches and memory as the other left them."""
    return [timed(world.device, step) for _ in range(TURN)][-1]


def against_fusionbench(world: World, rounds: int) -> dict[str, list[float]]:
    """Return times of entropy steps of FusionBench and ours, and of the encoder's passes alone."""
    works = {
        "ours entropy": Ours(world, objective="entropy", layer=None, update="joint"),
        "encoder alone": Passes(world, world.pretrained),
        "every token alone": Passes(world, world.peers_pretrained),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    theirs = count(1)

    def ours_between() -> None:
        if next(theirs) % TURN == 1:
            for name, work in works.items():
                seconds[name].append(our_turn(world, work.step))

    every, lam = fusionbench_steps(world, TURN * rounds, ours_between)
    seconds["FusionBench entropy"] = every[TURN - 1 :: TURN]
    agree("λ of the entropy steps", works["ours entropy"].lam(), lam, 1e-3)
    return seconds


def against_paper(world: World, rounds: int, kind: str) -> dict[str, list[float]]:
    """Return times of tinting steps of one of the paper's loops and ours."""
    update = "joint" if kind == "joint" else "sequential"
    paper, ours = Paper(world, kind), Ours(world, objective="hard", update=update)
    seconds: dict[str, list[float]] = {f"paper {kind}": [], f"ours {kind}": []}
    for _ in range(rounds):
        seconds[f"paper {kind}"].append(turn(world, paper.step))
        seconds[f"ours {kind}"].append(our_turn(world, ours.step))
    agree(f"λ of the {kind} steps", ours.lam(), paper.lam(), 1e-3)
    return seconds


def agree(what: str, ours: Tensor, theirs: Tensor, relative: float) -> None:
    """Stop if the two are not the same computation, by the relative error of all numbers together."""
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= relative:
        raise SystemExit(f"Ours and the peer's {what} differ: relative error {error:.1e}.")


def costs(scale: str, tasks: int, rounds: int, device: str, only_steps: bool = False) -> dict:
    """Return median seconds and ratios for one scale and K."""
    world = World(scale, tasks, TURN * (rounds + 1), device)
    seconds = ({} if only_steps else merges(world, max(rounds, 5))) | steps(world, rounds)
    half = {name: median(values) for name, values in seconds.items()}
    ratios = {
        "step_ratio_entropy": half["FusionBench entropy"] / half["ours entropy"],
        "encoder_share": half["encoder alone"] / half["ours entropy"],
    }
    for kind in world.kinds:
        ratios[RATIO[kind]] = half[f"paper {kind}"] / half[f"ours {kind}"]
    if not only_steps:
        ratios["merge_forward_ratio"] = half["naive θ"] / half["ours θ"]
        ratios["lambda_gradient_ratio"] = half["naive ∂λ"] / half["ours ∂λ"]
    return {**ratios, "median_seconds": half, "seconds": seconds}


def measure(options: argparse.Namespace) -> dict:
    """Return the costs at the scale and K that are asked for."""
    torch.set_num_threads(options.threads)
    asked = {name: getattr(options, name) for name in ("scale", "tasks", "threads", "device")}
    return asked | costs(options.scale, options.tasks, options.rounds, options.device)


ROWS = (
    ("merge θ(λ)", "naive θ", "ours θ", "merge_forward_ratio"),
    ("its gradient ∂λ", "naive ∂λ", "ours ∂λ", "lambda_gradient_ratio"),
    ("entropy step, FusionBench", "FusionBench entropy", "ours entropy", "step_ratio_entropy"),
    ("tinting step, paper's loop", "paper sequential", "ours sequential", RATIO["sequential"]),
    ("… of its third version", "paper v3", "ours v3", RATIO["v3"]),
    ("… of its first made joint", "paper joint", "ours joint", RATIO["joint"]),
)
"""Of the table: title, the peer's work, ours, and their ratio."""


def table(outcome: dict) -> Table:
    """Return the table of peers and ours side by side, in milliseconds."""
    half = outcome["median_seconds"]
    rest = half["every token alone"] - half["encoder alone"]
    rows = []
    for title, peer, ours, ratio in ROWS:
        if peer in half:
            same = f"{half[peer] / (half[ours] + rest):.2f}" if "step" in ratio else ""
            cells = f"{1e3 * half[peer]:.1f}", f"{1e3 * half[ours]:.1f}", f"{outcome[ratio]:.2f}"
            rows.append([title, *cells, same])
    alone, every = (f"{1e3 * half[name]:.1f} ms" for name in ("encoder alone", "every token alone"))
    caption = f"The encoder's passes alone, batch by batch: {alone}; as the peers run them: {every}."
    columns = ["", "peer, ms", "ours, ms", "ratio", "same tower"]
    return Table(columns, rows, caption=caption, numeric=False)


def draw(options: argparse.Namespace, *_: object) -> None:
    """Draw the time of a step by K, shared out over its tasks, if asked for: level if it grows as K."""
    if options.plot is None:
        return
    scale, measured = options.scale, (options.rounds, options.device, True)
    by_k = {k: costs(scale, k, *measured)["median_seconds"] for k in AGAINST_K}
    names = [name for name in by_k[AGAINST_K[0]] if name not in ("ours v3", "every token alone")]
    curves = {name: {k: 1e3 * half[name] / k for k, half in by_k.items()} for name in names}
    title, unit = f"One training step, scale {scale}, one thread", "milliseconds a step and task"
    against_k(options.plot, title, unit, curves, scale="linear")


def check(options: argparse.Namespace) -> None:
    """Let a quick run take three rounds."""
    options.rounds = 3 if options.quick else options.rounds


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "--scale": {"choices": SCALES, "default": "S", "help": "S: tiny tower; B: ViT-B/32; L: ViT-L/14"},
        "--tasks": {"type": int, "default": 8, "help": "number of experts K"},
        "--rounds": {"type": int, "default": 10, "help": "turns that each takes"},
        "--threads": {"type": int, "default": 1},
        "--device": {"default": "cpu"},
        "--quick": {"help": "three rounds"},
        "--plot": {"help": "draw step times against K into this file"},
        "--json": {},
    },
    draw=draw,
    check=check,
)

if __name__ == "__main__":
    BENCHMARK.main()
