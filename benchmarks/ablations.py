"""What each part of a setting brings, and what was tried beyond it: one change at a time.

    python benchmarks/ablations.py                                   # every change to `fast`, an hour
    python benchmarks/ablations.py --preset model_tinting --only "TSV-M start" "averaged"

Each is adapted on `val` without labels and scored on `test`, beside the setting as it is, with the same
seeds. What won stands in the presets; what did not is kept here, not in the package. Some changes need
`pip install "torchjd[quadprog_projector,cagrad,nash_mtl]"`; without it they are left out, with a message.
Runs are kept in `--work` (delete it after a change of the code): a stopped benchmark continues. Writes
`ablations_<pool>_<preset>.json` and `.md` into `--results`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from helpers import tried
from helpers.averages import plus_minus, spread
from helpers.command import Benchmark
from helpers.study_world import World

from fusion_tinting import Adaptation, Processes, Settings, TintedModel, predict_experts
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.context import Context
from fusion_tinting.run.files import read_json, write_json
from fusion_tinting.run.top_predictions import classes_kept
from fusion_tinting.run.training import Training


@dataclass(frozen=True)
class Change:
    """What differs from the setting.

    Attributes:
        settings: other values of settings.
        prepare: changes the untrained model.
        kind: what adapts it.
        of_blocks: whether the tint must be a block.
        needs: a package that must be there.
    """

    settings: dict = field(default_factory=dict)
    prepare: Callable[[TintedModel], None] = lambda model: None
    kind: Callable = Adaptation
    of_blocks: bool = False
    needs: str | None = None


def low_rank(rank: int) -> Change:
    """Return the change to tints of low rank."""
    return Change(prepare=partial(tried.low_rank, rank=rank), of_blocks=True)


def aggregated(name: str, **options: float) -> Change:
    """Return the change to a λ that follows one of TorchJD's aggregations."""

    def make(tasks: int) -> Callable:
        from torchjd import aggregation

        of_number = {"n_tasks": tasks} if name == "NashMTL" else {}
        return getattr(aggregation, name)(**options, **of_number)

    kind = partial(tried.Aggregated, aggregator=make)
    return Change({"update": "joint"}, kind=kind, needs="torchjd")


AS_IT_IS = "as it is"
CHANGES = {
    AS_IT_IS: Change(),
    "tint: head": Change({"layer": "head", "lr_tints": None}),
    "tint: last block": Change({"layer": "block:-1"}),
    "λ alone": Change({"layer": None, "lr_tints": None}),
    "tints alone": Change({"lr_coefficients": 0}),
    "one λ a task": Change({"granularity": "task"}),
    "λ not clamped": Change({"clamp": False}),
    "λ starts at 0.2": Change({"init": 0.2}),
    "tints at lr 1e-2": Change({"lr_tints": 1e-2}),
    "tints at lr 3e-4": Change({"lr_tints": 3e-4}),
    "hard labels": Change({"objective": "hard"}),
    "soft labels": Change({"objective": "soft"}),
    "entropy": Change({"objective": "entropy"}),
    "confidence difference": Change({"sampler": "confidence_difference"}),
    "most confident 80 %": Change({"sampler": "top_confidence:0.8"}),
    "last iteration": Change({"average": False}),
    "a step a task": Change({"update": "sequential"}),
    "a step an iteration": Change({"update": "joint"}),
    "TSV-M start": Change(prepare=tried.tsv_m),
    "ISO-C start": Change(prepare=tried.iso_c),
    "averaged": Change({"average": True}),
    "low rank 2": low_rank(2),
    "low rank 8": low_rank(8),
    "low rank 32": low_rank(32),
    "UPGrad": aggregated("UPGrad"),
    "PCGrad": aggregated("PCGrad"),
    "CAGrad": aggregated("CAGrad", c=0.5),
    "Nash-MTL": aggregated("NashMTL"),
    "MGDA": aggregated("MGDA"),
}  # fmt: skip


def measure(options: argparse.Namespace) -> dict:
    """Run what is asked for, and return all that is known."""
    for zoo in options.zoos:
        world = World(options.pool, options.preset, "val", options.work.resolve(), *of_zoo(options, zoo))
        for seed in options.seeds if zoo == options.zoos[0] else options.seeds[:1]:
            for name in [AS_IT_IS, *(options.only or CHANGES)]:
                if CHANGES[name].needs and find_spec(CHANGES[name].needs) is None:
                    print(f"left out, for {CHANGES[name].needs} is not installed: {name}")
                elif can(CHANGES[name], world):
                    once(world, options, name, zoo, seed)
    runs = known(options)
    experts = {place: run["experts"] for place, run in runs[AS_IT_IS].items()}
    return {"pool": options.pool, "preset": options.preset, "rows": rows(runs), "experts": experts}


def known(options: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """Return change -> place -> the outcome of every run that is kept, of earlier calls too."""
    runs: dict[str, dict[str, dict]] = {}
    for name in CHANGES:
        for zoo in options.zoos:
            for seed in options.seeds:
                path = file_of(options, name, zoo, seed)
                if path.is_file():
                    runs.setdefault(name, {})[f"zoo {zoo}, seed {seed}"] = read_json(path)
    return runs


def file_of(options: argparse.Namespace, name: str, zoo: int, seed: int) -> Path:
    """Return where a run's outcome is kept."""
    folder = options.work.resolve() / options.pool / options.preset
    return folder / f"{name}, zoo {zoo}, seed {seed}.json".replace(" ", "_").replace("%", "percent")


def of_zoo(options: argparse.Namespace, zoo: int) -> tuple[str, ...]:
    """Return the overrides of another build of a mini; pools of the hub have none."""
    return (f"modelpool.zoo_seed={zoo}",) if "mini" in options.pool or "micro" in options.pool else ()


def can(change: Change, world: World) -> bool:
    """Return whether a change applies to this preset: whether it changes a value, and fits the layer."""
    same = all(world.settings[name] == value for name, value in change.settings.items())
    nothing = change.settings and same and change.kind is Adaptation
    return not nothing and not (change.of_blocks and world.settings["layer"] == "head")


def once(world: World, options: argparse.Namespace, name: str, zoo: int, seed: int) -> None:
    """Make a run that is not kept yet, and print its outcome."""
    path = file_of(options, name, zoo, seed)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run(world, CHANGES[name], seed))
    outcome = read_json(path)
    accuracy = mean(outcome["per_task"].values())
    print(f"{accuracy:6.2f}  {outcome['seconds']:6.1f} s  {name}, zoo {zoo}, seed {seed}", flush=True)


def run(world: World, change: Change, seed: int) -> dict:
    """Adapt with a change, and return the scores and costs."""
    settings = Settings.from_options({**world.settings, **change.settings, "seed": seed})
    family, inputs = world.family, world.adapted_on()
    start = time.process_time()
    model = family.model_class.untrained(
        family.pretrained, family.experts, family.heads, settings.layer, settings.task_vectors
    )
    change.prepare(model)
    top = {task: classes_kept(settings, task) for task in world.tasks}
    predictions = predict_experts(family.experts, family.heads, inputs, top=top, cache=True, progress=False)
    processes = Processes()
    with change.kind(model, settings, processes) as adaptation:
        context = Context(processes, progress=False)
        lessons = Training(adaptation, inputs, predictions, context).lessons()
        for step in range(settings.steps):
            adaptation.iteration(step, lessons)
        adaptation.finish()
    seconds = time.process_time() - start
    trained = [p.numel() for p in model.tint_modules.parameters() if p.requires_grad]
    return {
        "per_task": world.accuracies(model),
        "experts": world.experts,
        "seconds": round(seconds, 1),
        "parameters_per_task": round(sum(trained) / len(world.tasks)),
    }


def rows(runs: dict[str, dict[str, dict]]) -> list[dict]:
    """Return every change's accuracy, and its difference to the setting as it is, run by run.

    Args:
        runs: change -> place -> outcome, as `known` returns it.
    """
    base = averages(runs[AS_IT_IS])
    return [row(name, each, base) for name, each in runs.items()]


def row(name: str, runs: dict[str, dict], base: dict[str, float]) -> dict:
    """Return the row of one change, with its difference to `base`, place by place."""
    scored = averages(runs)
    return {
        "change": name,
        "accuracy": spread(scored.values()),
        "difference": spread(scored[place] - base[place] for place in scored),
        "seconds": spread(run["seconds"] for run in runs.values()),
        "parameters_per_task": next(iter(runs.values()))["parameters_per_task"],
        "runs": runs,
    }


def averages(runs: dict[str, dict]) -> dict[str, float]:
    """Return place -> mean accuracy over the tasks."""
    return {place: mean(run["per_task"].values()) for place, run in runs.items()}


def table(outcome: dict) -> Table:
    """Return the table of all changes."""
    rows = [
        [
            row["change"],
            plus_minus(row["accuracy"]),
            "" if row["change"] == AS_IT_IS else signed(row["difference"]),
            len(row["runs"]),
            f"{row['seconds']['mean']:.0f}",
            row["parameters_per_task"],
        ]
        for row in outcome["rows"]
    ]
    columns = ["accuracy %", "difference", "runs", "CPU seconds", "trained parameters a task"]
    return Table(["change", *columns], rows, numeric=False)


def signed(value: dict) -> str:
    """Return the text of a difference, with its sign."""
    return ("+" if value["mean"] >= 0 else "−") + plus_minus({**value, "mean": abs(value["mean"])})


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "--pool": {"default": "clip-mini_8", "help": "model pool, of CLIP models"},
        "--preset": {"default": "model_tinting_fast", "help": "method with the setting"},
        "--only": {"nargs": "+", "choices": CHANGES, "help": "changes to try (default: all)"},
        "--seeds": {"help": "adaptation seeds, on the first zoo"},
        "--zoos": {"default": [0], "help": "zoo seeds; all but the first with one seed"},
        "--work": {"default": Path("outputs/ablations")},
        "--results": {},
    },
    path=lambda options, _: options.results / f"ablations_{options.pool}_{options.preset}.json",
)

if __name__ == "__main__":
    BENCHMARK.main()
