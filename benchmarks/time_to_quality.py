"""How soon `model_tinting_fast` is as good as the paper's recipe after 500 iterations, on `clip-mini_8`.

    python benchmarks/time_to_quality.py    # half an hour on two cores; continues where it was stopped

Every figure is a `fusion_bench` process, one at a time and in turns, with a cache that holds the zoo and
nothing else: each asks the experts anew. Seconds are those of the artifact (`tinting.json`): reading the
images, expert predictions, choosing the number of threads, and adaptation; but neither loading models nor
evaluation. Writes `benchmarks/results/time_to_quality_clip-mini_8.json`, a table and a plot.
"""

import argparse
import os
from pathlib import Path

from helpers.averages import average, plus_minus, spread
from helpers.clip_mini import runner
from helpers.command import RESULTS, Benchmark
from helpers.figures import COLORS, new, save
from helpers.runs import Runner, empty_cache

from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.files import read_json

PAPER, FAST = "model_tinting", "model_tinting_fast"
STEPS = {PAPER: (50, 100, 200, 500), FAST: (10, 20, 40)}
"""On the way to the last: what fewer iterations give."""
SPLITS = {"test": "transductive", "val": "inductive"}
GOAL = 0.2
"""Points that the fast setting may fall short of the paper's recipe."""


def measure(options: argparse.Namespace) -> dict:
    """Run every method with every number of iterations, in turns."""
    run = runner(options.work, 1, {"FUSION_TINTING_CACHE": str(empty_cache(options.work))})
    run.all({"zoo": ("modelpool.zoo_seed=0", "method=dummy")})
    plan = {
        (method, split, seed, steps): arguments(method, split, seed, steps)
        for seed in options.seeds
        for split in SPLITS
        for place in range(max(map(len, STEPS.values())))
        for method, counts in STEPS.items()
        for steps in counts[place : place + 1]
        if seed == options.seeds[0] or steps == counts[-1]
    }
    outcomes = {}
    for key, overrides in plan.items():
        for predictions in (options.work / "cache").glob("predictions/*"):
            predictions.unlink()
        outcomes[key] = measured(run, key, overrides)
    return summary(options.seeds, outcomes)


def arguments(method: str, split: str, seed: int, steps: int) -> tuple[str, ...]:
    """Return the overrides of one run."""
    return (
        f"method={method}", f"method.adapt_split={split}", f"method.steps={steps}", f"seed={seed}",
        "method.run_dir=run", "+taskpool.baselines=false",
    )  # fmt: skip


def measured(run: Runner, key: tuple, overrides: tuple[str, ...]) -> dict:
    """Return accuracy, seconds and images of one run."""
    report = run.one(" ".join(map(str, key)), overrides)
    manifest = read_json(run.folder(overrides) / "run" / "tinting.json")
    settings, tasks = manifest["settings"], len(manifest["tasks"])
    return {
        "accuracy": average(report),
        "seconds": manifest["seconds"],
        "images_taught": settings["steps"] * settings["batch_size"] * tasks,
        "images_labeled": sum(manifest["samples"].values()),
    }


def summary(seeds: list[int], outcomes: dict[tuple, dict]) -> dict:
    """Return protocol -> method -> means over seeds after its last iteration, and all runs."""
    rows = {}
    for split, name in SPLITS.items():
        last = {m: [outcomes[m, split, seed, STEPS[m][-1]] for seed in seeds] for m in STEPS}
        rows[name] = {method: row(runs) for method, runs in last.items()}
        paper, fast = (rows[name][method] for method in (PAPER, FAST))
        rows[name]["times_as_fast"] = round(paper["seconds"]["mean"] / fast["seconds"]["mean"], 2)
        rows[name]["points_gained"] = round(fast["accuracy"]["mean"] - paper["accuracy"]["mean"], 2)
    names = ("method", "split", "seed", "steps")
    runs = [dict(zip(names, key, strict=True)) | run for key, run in outcomes.items()]
    return {"seeds": seeds, "rows": rows, "runs": runs, "cores": len(os.sched_getaffinity(0))}


def row(runs: list[dict]) -> dict:
    """Return the means of several runs, and the images that each was adapted on."""
    means = {name: spread(run[name] for run in runs) for name in ("accuracy", "seconds")}
    return means | {name: runs[0][name] for name in ("images_taught", "images_labeled")}


def table(outcome: dict) -> Table:
    """Return the table of accuracy and seconds of both, and how many times as fast the fast one is."""
    rows = []
    for name, row in outcome["rows"].items():
        cells = [plus_minus(row[m][what]) for m in (PAPER, FAST) for what in ("accuracy", "seconds")]
        rows.append([name, *cells, f"{row['times_as_fast']:.1f} ×"])
    columns = ["paper's recipe", "seconds", f"`{FAST}`", "seconds", "as fast"]
    return Table(["clip-mini_8, zoo 0", *columns], rows, numeric=False)


def draw(_: argparse.Namespace, outcome: dict, path: Path) -> None:
    """Draw accuracy against seconds, of the first seed."""
    figure, axes = new(6, 4)
    for place, (split, name) in enumerate(SPLITS.items()):
        for method, style in ((PAPER, "--s"), (FAST, "-o")):
            key = method, split, outcome["seeds"][0]
            runs = [run for run in outcome["runs"] if (run["method"], run["split"], run["seed"]) == key]
            points = sorted((run["seconds"], run["accuracy"]) for run in runs)
            axes.plot(*zip(*points, strict=True), style, color=COLORS[place], label=f"{method}, {name}")
    axes.set(xlabel="seconds, expert predictions included", ylabel="accuracy %", xscale="log")
    axes.set_title(f"Accuracy over time on clip-mini_8; CPU cores: {outcome['cores']}")
    axes.legend(fontsize=8)
    save(figure, path.with_suffix(".png"))


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={"--seeds": {}, "--work": {"default": Path("outputs/time")}},
    path=lambda *_: RESULTS / "time_to_quality_clip-mini_8.json",
    draw=draw,
)

if __name__ == "__main__":
    BENCHMARK.main()
