"""How soon `model_tinting_fast` is as good as the paper's recipe after 500 iterations, on `clip-mini_8`.

    python benchmarks/time_to_quality.py    # half an hour on two cores; continues where it was stopped

Every figure is a `fusion_bench` process, one at a time and in turns, with a cache that holds the zoo and
nothing else: each asks the experts anew. Seconds are those of the artefact (`tinting.json`): reading the
images, expert predictions, choosing the number of threads, and adaptation; but neither loading models nor
evaluation. Writes `benchmarks/results/time_to_quality_clip-mini_8.json`, a table and a plot.
"""

import argparse
import json
import os
from pathlib import Path

from common import COLORS, RESULTS, about, save
from quality import runner
from runs import Runner, average, empty_cache, shown, spread

PAPER, FAST = "model_tinting", "model_tinting_fast"
STEPS = {PAPER: (50, 100, 200, 500), FAST: (10, 20, 40)}
"""On the way to the last: what fewer iterations give."""
SPLITS = {"test": "transductive", "val": "inductive"}
GOAL = 0.2
"""Points that the fast setting may fall short of the paper's recipe."""


def main() -> None:
    options = parse()
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
    found = {}
    for key, overrides in plan.items():
        for remembered in (options.work / "cache").glob("predictions/*"):
            remembered.unlink()
        found[key] = measured(run, key, overrides)
    write(summary(options.seeds, found))


def arguments(method: str, split: str, seed: int, steps: int) -> tuple[str, ...]:
    return (
        f"method={method}", f"method.adapt_split={split}", f"method.steps={steps}", f"seed={seed}",
        "method.run_dir=run", "+taskpool.baselines=false",
    )  # fmt: skip


def measured(run: Runner, key: tuple, overrides: tuple[str, ...]) -> dict:
    """Accuracy, seconds and images of one run."""
    report = run.one(" ".join(map(str, key)), overrides)
    manifest = json.loads((run.folder(overrides) / "run" / "tinting.json").read_text())
    settings, tasks = manifest["settings"], len(manifest["tasks"])
    return {
        "accuracy": average(report),
        "seconds": manifest["seconds"],
        "images_taught": settings["steps"] * settings["batch_size"] * tasks,
        "images_labelled": sum(manifest["samples"].values()),
    }


def summary(seeds: list[int], found: dict) -> dict:
    rows = {}
    for split, name in SPLITS.items():
        last = {m: [found[m, split, seed, STEPS[m][-1]] for seed in seeds] for m in STEPS}
        rows[name] = {
            method: {
                "accuracy": spread(run["accuracy"] for run in runs),
                "seconds": spread(run["seconds"] for run in runs),
                "images_taught": runs[0]["images_taught"],
                "images_labelled": runs[0]["images_labelled"],
            }
            for method, runs in last.items()
        }
        paper, fast = (rows[name][method] for method in (PAPER, FAST))
        rows[name]["times_as_fast"] = round(paper["seconds"]["mean"] / fast["seconds"]["mean"], 2)
        rows[name]["points_gained"] = round(fast["accuracy"]["mean"] - paper["accuracy"]["mean"], 2)
    runs = [
        dict(zip(("method", "split", "seed", "steps"), key, strict=True)) | run
        for key, run in found.items()
    ]
    command = "python benchmarks/time_to_quality.py"
    return {
        "command": command,
        "seeds": seeds,
        "rows": rows,
        "runs": runs,
        "cores": len(os.sched_getaffinity(0)),
        **about(),
    }


def table(found: dict) -> str:
    """Accuracy and seconds of both, and how many times as fast the fast one is."""
    lines = [
        "| clip-mini_8, zoo 0 | paper's recipe | seconds | `model_tinting_fast` | seconds | as fast |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        cells = [shown(row[m][what]) for m in (PAPER, FAST) for what in ("accuracy", "seconds")]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['times_as_fast']:.1f} × |")
    return "\n".join(lines) + "\n"


def plot(found: dict, path: Path) -> None:
    """Accuracy against seconds, of the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for place, (split, name) in enumerate(SPLITS.items()):
        for method, style in ((PAPER, "--s"), (FAST, "-o")):
            runs = [
                run
                for run in found["runs"]
                if (run["method"], run["split"], run["seed"]) == (method, split, found["seeds"][0])
            ]
            points = sorted((run["seconds"], run["accuracy"]) for run in runs)
            axes.plot(*zip(*points, strict=True), style, color=COLORS[place], label=f"{method}, {name}")
    axes.set(xlabel="seconds, expert predictions included", ylabel="accuracy %", xscale="log")
    axes.set_title(f"Accuracy over time on clip-mini_8; CPU cores: {found['cores']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write(found: dict) -> None:
    path = RESULTS / "time_to_quality_clip-mini_8.json"
    save(path, found)
    path.with_suffix(".md").write_text(table(found))
    plot(found, path.with_suffix(".png"))
    print(table(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="adaptation seeds")
    parser.add_argument("--work", type=Path, default=Path("outputs/time"), help="where runs are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
