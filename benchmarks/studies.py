"""What adaptation needs, and what it withstands: one study, one figure.

    python benchmarks/studies.py samples       # accuracy by the number of unlabeled images a task
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
from helpers import study_plots
from helpers.command import Benchmark
from helpers.corruptions import CORRUPTIONS
from helpers.study_world import Pair, World
from torchmetrics.functional.classification import multiclass_calibration_error

from fusion_tinting import TintedModel
from fusion_tinting.method.schedule import stable_seed

SAMPLES = (1, 3, 10, 30, 100, 300)
STEPS = (10, 20, 40, 100, 200, 500)
BINS = 15
"""The number of bins of the calibration error that is usual."""


def samples(world: World, seeds: list[int]) -> dict:
    """Return accuracies by the number of images a task; few images are visited again and again."""
    every = {task: len(inputs) for task, inputs in world.adapted_on().items()}
    counts = {n: dict.fromkeys(every, n) for n in SAMPLES if n < min(every.values())} | {"all": every}
    rows = [
        tinted(world, f"samples/{name}", numbers, seed)
        for seed in seeds
        for name, numbers in counts.items()
    ]
    rows = [{**row, "samples": mean(row["samples"].values())} for row in rows]
    return curve("samples", "unlabeled images per task", rows, world)


def steps(world: World, seeds: list[int]) -> dict:
    """Return accuracies by the number of iterations, each run with a schedule of its own."""
    every = {task: len(inputs) for task, inputs in world.adapted_on().items()}
    rows = [
        {**tinted(world, f"steps/{count}", every, seed, steps=count), "steps": count}
        for seed in seeds
        for count in STEPS
    ]
    return curve("steps", "iterations", rows, world)


def tinted(world: World, part: str, counts: dict, seed: int, **changes: object) -> dict:
    """Return the row of one adaptation on `counts[task]` inputs; `samples` says how many it visited."""
    model = world.tinted(f"{part}-seed{seed}", world.subsets(counts, seed), seed=seed, **changes)
    scored = world.accuracies(model)
    samples = model.info.samples
    return {"seed": seed, "samples": samples, "accuracy": mean(scored.values()), "per_task": scored}


def curve(x: str, title: str, rows: list[dict], world: World) -> dict:
    """Return the outcome of a study whose accuracies are drawn over the rows' value `x`."""
    lines = world.averages("experts", "Task Arithmetic")
    return {"x": x, "x_title": title, "rows": rows, "references": lines}


def imbalance(world: World, seeds: list[int]) -> dict:
    """Return accuracies with log-uniform numbers of images, from 1 to all, and with equal numbers."""
    most = min(len(inputs) for inputs in world.adapted_on().values())
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
    """Return accuracies on every corruption, adapted on clean and on corrupted images."""
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


def on_images(world: World, name: str | None, seed: int) -> TintedModel:
    """Return the model that is adapted on the images with this corruption."""
    return world.tinted(f"corruption/{name or 'clean'}-seed{seed}", world.adapted_on(name), seed=seed)


def calibration(world: World, seeds: list[int]) -> dict:
    """Return expected calibration errors (Guo et al., arXiv 1706.04599): |confidence − accuracy| by bin."""
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
    """Yield (name, task -> model), of those whose calibration is compared."""
    for name in ("pre-trained", "Task Arithmetic"):
        yield name, lambda task, name=name: world.reference(name, task)
    model = world.tinted(f"calibration/seed{seeds[0]}", world.adapted_on(), seed=seeds[0])
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
    """Return accuracies of two experts merged, of one pre-trained model and of two.

    In the second pair the second expert is from another zoo, whose pre-training began elsewhere and saw
    other images: the disjoint basins of arXiv 2412.19098. θ₀ is the first's.
    """
    first, second = TWO
    other = World(world.name, world.preset, world.split, world.work / "other", "modelpool.zoo_seed=1")
    rows = []
    for pair, home in (("one pre-training", world), ("two pre-trainings", other)):
        for way, each in merges(pair, Pair({first: world, second: home}), seeds).items():
            accuracy = [mean(one.values()) for one in each]
            rows.append({"pair": pair, "model": way, "accuracy": accuracy, "per_task": each})
    return {"rows": rows, "tasks": TWO}


def merges(name: str, pair: Pair, seeds: list[int]) -> dict[str, list[dict[str, float]]]:
    """Return way of merging a pair -> for each seed task -> accuracy."""
    average = pair.untrained.remerged(1 / 2)
    scores = {
        "experts": [pair.accuracies(pair.untrained.remerged)],
        "simple average": [pair.accuracies(lambda _: average)],
    }
    for way, changes in WAYS.items():
        scores[way] = []
        for seed in seeds:
            part = f"{name}, {way}, seed {seed}".replace(" ", "_")
            model = pair.tinted(part, {"seed": seed, **changes})
            scores[way].append(pair.accuracies(lambda _, model=model: model))
    return scores


STUDIES = {study.__name__: study for study in (samples, steps, imbalance, corruption, calibration, origins)}


def measure(options: argparse.Namespace) -> dict:
    """Do the study that is asked for."""
    world = World(options.pool, options.preset, options.split, options.work.resolve())
    command = f"python benchmarks/studies.py {options.study} --pool {options.pool}"
    given = {name: getattr(options, name) for name in ("pool", "preset", "split", "seeds")}
    return {"command": command, **given, **STUDIES[options.study](world, options.seeds)}


def draw(options: argparse.Namespace, outcome: dict, path: Path) -> None:
    """Draw the figure of the study."""
    study_plots.DRAW[options.study](path.with_suffix(".png"), outcome, options.pool)


BENCHMARK = Benchmark(
    __doc__,
    measure,
    options={
        "study": {"choices": STUDIES},
        "--pool": {"default": "clip-mini_8", "help": "model pool, of CLIP models"},
        "--preset": {"default": "model_tinting_fast", "help": "method with the settings"},
        "--split": {"default": "val", "choices": ("val", "test"), "help": "adapted on, without labels"},
        "--seeds": {},
        "--work": {"default": Path("outputs/studies")},
        "--results": {},
    },
    path=lambda options, _: options.results / f"study_{options.study}.json",
    draw=draw,
)

if __name__ == "__main__":
    BENCHMARK.main()
