"""What adaptation needs, and what it withstands: one study, one figure.

    python benchmarks/studies.py samples       # accuracy by the number of unlabelled images a task
    python benchmarks/studies.py steps         # by the number of iterations
    python benchmarks/studies.py imbalance     # tasks with very different numbers of images
    python benchmarks/studies.py corruption    # adapted and scored on clean and on corrupted images
    python benchmarks/studies.py calibration   # expected calibration error
    python benchmarks/studies.py origins       # two experts, of one pre-training and of two

Each with the settings of `--preset`, adapted on `val` without labels and scored on `test`. On clip-mini_8
and two cores they take from one minute (calibration) to a quarter of an hour (steps). Adaptations are kept
in `--work`: a study that was stopped continues. Writes `study_<name>.json` and `.png` into `--results`.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import study_plots
from common import RESULTS, about, save
from corruptions import CORRUPTIONS
from study_world import Pair, World
from torchmetrics.functional.classification import multiclass_calibration_error

from fusion_tinting.run.unlabeled import stable_seed

SAMPLES = (1, 3, 10, 30, 100, 300)
STEPS = (10, 20, 40, 100, 200, 500)
BINS = 15
"""Of the calibration error, as is usual."""


def samples(world: World, seeds: list[int]) -> dict:
    """By the number of images a task: the same ones again and again where they are few."""
    every = {task: len(inputs) for task, inputs in world.teaching().items()}
    counts = {n: dict.fromkeys(every, n) for n in SAMPLES if n < min(every.values())} | {"all": every}
    rows = [
        tinted(world, f"samples/{name}", numbers, seed)
        for seed in seeds
        for name, numbers in counts.items()
    ]
    rows = [{**row, "samples": mean(row["samples"].values())} for row in rows]
    return curve("samples", "unlabelled images per task", rows, world)


def steps(world: World, seeds: list[int]) -> dict:
    """By the number of iterations, each run with a schedule of its own."""
    every = {task: len(inputs) for task, inputs in world.teaching().items()}
    rows = [
        {**tinted(world, f"steps/{count}", every, seed, steps=count), "steps": count}
        for seed in seeds
        for count in STEPS
    ]
    return curve("steps", "iterations", rows, world)


def tinted(world: World, part: str, counts: dict, seed: int, **changes) -> dict:
    """One adaptation on some of the inputs, and its row. `samples`: how many images of a task it saw."""
    model = world.tinted(f"{part}-seed{seed}", world.some(counts, seed), seed=seed, **changes)
    scored = world.accuracies(model)
    samples = model.info["samples"]
    return {"seed": seed, "samples": samples, "accuracy": mean(scored.values()), "per_task": scored}


def curve(x: str, title: str, rows: list[dict], world: World) -> dict:
    lines = world.averages("experts", "Task Arithmetic")
    return {"x": x, "x_title": title, "rows": rows, "references": lines}


def imbalance(world: World, seeds: list[int]) -> dict:
    """Each task's number of images is drawn log-uniformly from 1 to all; beside as many in equal parts."""
    most = min(len(inputs) for inputs in world.teaching().values())
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(stable_seed(seed, "imbalance"))
        drawn = np.exp(rng.uniform(0, math.log(most), len(world.tasks))).round().astype(int).tolist()
        streams = {
            "imbalanced": dict(zip(world.tasks, drawn, strict=True)),
            "balanced": dict.fromkeys(world.tasks, max(1, round(mean(drawn)))),
        }
        for stream, counts in streams.items():
            rows.append({"stream": stream, **tinted(world, f"imbalance/{stream}", counts, seed)})
    return {"rows": rows, "experts": world.accuracies("experts")}


def corruption(world: World, seeds: list[int]) -> dict:
    """Every corruption: what Task Arithmetic and the experts withstand, and which images to adapt on."""
    rows, clean = [], [on_images(world, None, seed) for seed in seeds]
    for name in (None, *CORRUPTIONS):
        scored = {model: [world.accuracies(model, name)] for model in ("Task Arithmetic", "experts")}
        scored["adapted on clean images"] = [world.accuracies(model, name) for model in clean]
        if name is not None:
            scored["adapted on corrupted images"] = [
                world.accuracies(on_images(world, name, seed), name) for seed in seeds
            ]
        for model, each in scored.items():
            accuracy = [mean(one.values()) for one in each]
            rows.append({"images": name or "clean", "model": model, "accuracy": accuracy, "per_task": each})
        world.forget(name)
    return {"rows": rows}


def on_images(world: World, name: str | None, seed: int):
    """Adapted on the images with this corruption."""
    return world.tinted(f"corruption/{name or 'clean'}-seed{seed}", world.teaching(name), seed=seed)


def calibration(world: World, seeds: list[int]) -> dict:
    """Expected calibration error (Guo et al., arXiv 1706.04599): |confidence − accuracy|, over 15 bins."""
    rows = []
    for model, of in models(world, seeds):
        errors = {}
        for task in world.tasks:
            logits, labels = world.logits(of(task), task), world.labels(task)
            error = multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS)
            errors[task] = round(100 * float(error), 2)
        rows.append({"model": model, "error": mean(errors.values()), "per_task": errors})
    return {"rows": rows, "bins": BINS}


def models(world: World, seeds: list[int]) -> Iterator[tuple]:
    """(name, task -> model), of those whose calibration is compared."""
    for name in ("pre-trained", "Task Arithmetic"):
        yield name, lambda task, name=name: world.reference(name, task)
    model = world.tinted(f"calibration/seed{seeds[0]}", world.teaching(), seed=seeds[0])
    yield "tinted", lambda task: model
    yield "experts", lambda task: world.reference("experts", task)


TWO = ("mini-signs", "mini-textures")
"""Tasks of `origins`."""
WAYS = {
    "AdaMerging": {
        "layer": None, "lr_tints": None, "objective": "entropy", "lr": 1e-3, "update": "joint",
        "average": False, "steps": 500,
    },
    "tinted head": {"layer": "head", "lr_tints": None},
    "tinted block": {},
}  # fmt: skip
"""Name -> what differs from the preset, of the ways that adapt."""


def origins(world: World, seeds: list[int]) -> dict:
    """Two experts of one pre-trained model; and with the second from another zoo, whose pre-training began
    elsewhere and saw other images: the disjoint basins of arXiv 2412.19098. θ₀ is the first's."""
    first, second = TWO
    other = World(world.name, world.preset, world.split, world.work / "other", "modelpool.zoo_seed=1")
    rows = []
    for pair, home in (("one pre-training", world), ("two pre-trainings", other)):
        both = Pair({first: world, second: home})
        average = both.untrained.remerged(1 / 2)
        named = {
            "experts": [both.accuracies(both.untrained.remerged)],
            "simple average": [both.accuracies(lambda task, model=average: model)],
        }
        for way, changes in WAYS.items():
            for seed in seeds:
                model = both.tinted(
                    f"{pair}, {way}, seed {seed}".replace(" ", "_"), {"seed": seed, **changes}
                )
                named.setdefault(way, []).append(both.accuracies(lambda task, model=model: model))
        for way, each in named.items():
            accuracy = [mean(one.values()) for one in each]
            rows.append({"pair": pair, "model": way, "accuracy": accuracy, "per_task": each})
    return {"rows": rows, "tasks": TWO}


STUDIES = {study.__name__: study for study in (samples, steps, imbalance, corruption, calibration, origins)}


def main() -> None:
    options = parse()
    world = World(options.pool, options.preset, options.split, options.work.resolve())
    found = STUDIES[options.study](world, options.seeds)
    path = options.results / f"study_{options.study}.json"
    command = f"python benchmarks/studies.py {options.study} --pool {options.pool}"
    given = {name: getattr(options, name) for name in ("pool", "preset", "split", "seeds")}
    save(path, {"command": command, **given, **found, **about()})
    study_plots.DRAW[options.study](path.with_suffix(".png"), found, options.pool)
    print(f"Written: {path} and {path.with_suffix('.png').name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--pool", default="clip-mini_8", help="model pool, of CLIP models")
    parser.add_argument("--preset", default="model_tinting_fast", help="method with the settings")
    parser.add_argument(
        "--split", default="val", choices=("val", "test"), help="adapted on, without labels"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="adaptation seeds")
    parser.add_argument("--work", type=Path, default=Path("outputs/studies"), help="where runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and figure go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
