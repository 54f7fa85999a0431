"""`mergekit-tint learn CONFIG RUN`: coefficients and tints from unlabelled inputs, and ready recipes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.table import Table
from torch import Tensor, nn

from fusion_tinting.errors import unknown
from fusion_tinting.experts import predict
from fusion_tinting.mergekit import recipes, texts
from fusion_tinting.mergekit.classifiers import Classifiers
from fusion_tinting.mergekit.cli import FILE, FOLDER
from fusion_tinting.mergekit.config import FAMILIES, Config, read
from fusion_tinting.mergekit.language_models import LanguageModels
from fusion_tinting.objectives import agreement, divergence
from fusion_tinting.reporting.tables import OneTask, show
from fusion_tinting.task_vectors import PRETRAINED
from fusion_tinting.tinted_model import TintedModel
from fusion_tinting.tinting import tint
from fusion_tinting.unlabeled import Unlabeled, batch_schedule

ARCHITECTURES = {"ForSequenceClassification": "sequence_classification", "ForCausalLM": "causal_lm",
                 "LMHeadModel": "causal_lm"}  # fmt: skip
"""Ending of a transformers architecture -> its family."""


@click.command("learn")
@click.argument("config", type=FILE)
@click.argument("run_dir", type=FOLDER, metavar="RUN")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def command(config: Path, run_dir: Path, quiet: bool) -> None:
    """Learn coefficients and tints as CONFIG says, into the folder RUN; a run found there continues."""
    options = read(config)
    model, aside = learn(options, run_dir, progress=not quiet)
    labels = {task: inputs.labels for task, inputs in aside.items()}
    with torch.random.fork_rng(devices=[]):
        found = compare(model, {task: inputs.unlabeled for task, inputs in aside.items()})
    for table in tables(found, labels):
        show(table)
    click.echo(f"\nmergekit-tint variants {run_dir} OUT    # a checkpoint for every task")
    if options.family == "causal_lm" or (run_dir / "recipe.yml").is_file():
        click.echo(f"mergekit-tint yaml {run_dir / 'recipe.yml'} OUT    # the shared model")


@dataclass(frozen=True)
class Aside:
    """What is kept for the report: inputs that did not teach, and their labels where there are any."""

    unlabeled: Unlabeled
    labels: list | None


def learn(config: Config, run_dir: Path, progress: bool = True) -> tuple[TintedModel, dict[str, Aside]]:
    """Adapt, write the artefact and the recipes, and return the tinted model and what was kept aside.

    Raises:
        FileNotFoundError, ValueError: bad settings, models or data, named; before anything is written.
    """
    by_task = config.by_task
    rows = {task: texts.read(expert.data, task) for task, expert in by_task.items()}
    family = config.family if config.family != "auto" else family_of(config.experts[0].model)
    models = FAMILY[family](config)
    inputs = {task: models.unlabeled(task, rows[task]) for task in by_task}
    used, aside = {}, {}
    for task, unlabeled in inputs.items():
        used[task], aside[task] = _split(unlabeled, rows[task].labels, by_task[task].data.aside, task)
    settings = {**models.defaults, **config.adapt}
    if settings.get("layer", "head") == "head":
        settings["layer"] = models.head
    model = tint(
        models.pretrained,
        experts=models.experts,
        heads=models.heads,
        unlabeled=used,
        run_dir=run_dir,
        progress=progress,
        info={
            "ids": {PRETRAINED: config.base_model, **{task: e.model for task, e in by_task.items()}},
            "tensor_names": models.names,
        },
        **settings,
    )
    experts = {task: expert.model for task, expert in by_task.items()}
    recipes.write(run_dir, config.base_model, experts, model.tasks)
    return model, aside


def family_of(model: str) -> str:
    """The family that a checkpoint's configuration says.

    Raises:
        ValueError: an architecture that none handles.
    """
    from transformers import AutoConfig

    architectures = texts.reachable(AutoConfig.from_pretrained, model).architectures or ["none"]
    for ending, family in ARCHITECTURES.items():
        if architectures[0].endswith(ending):
            return family
    raise unknown(f"family of the architecture in `{model}`", architectures[0], FAMILIES[1:])


def _split(unlabeled: Unlabeled, labels: list | None, share: float, task: str) -> tuple[Unlabeled, Aside]:
    order = batch_schedule(len(unlabeled), len(unlabeled), 1, 0, f"aside {task}")[0].tolist()
    count = min(max(1, round(share * len(unlabeled))), len(unlabeled) - 1)
    if count < 1:
        raise ValueError(f"Task `{task}` has a single input; at least two are needed: one is kept aside.")
    kept = sorted(order[:count])
    labels = None if labels is None else [labels[index] for index in kept]
    return unlabeled.subset(sorted(order[count:])), Aside(unlabeled.subset(kept), labels)


def compare(model: TintedModel, aside: Mapping[str, Unlabeled]) -> dict[str, dict[str, Tensor]]:
    """Way of merging -> task -> its output on the inputs kept aside; the expert's is among the ways."""
    count = len(model.tasks)
    init = model.info["settings"]["init"]
    ways = {
        "base": lambda task: model.remerged(0.0),
        f"average\nλ = 1/{count}": lambda task: model.remerged(1 / count),
        f"Task Arithmetic\nλ = {init}": lambda task: model.remerged(init),
        "tinted": lambda task: model,
        "expert": model.remerged,
    }
    found: dict[str, dict[str, Tensor]] = {}
    for name, merged in ways.items():
        shared = merged(model.tasks[0])
        for task in model.tasks:
            one = merged(task) if name == "expert" else shared
            output = predict(OneTask(one, task), nn.Identity(), aside[task])
            found.setdefault(name, {})[task] = output
    return found


def tables(found: Mapping[str, Mapping[str, Tensor]], labels: Mapping[str, list | None]) -> Iterator[Table]:
    """Agreement with the experts, their divergence from them, and accuracy where there are labels."""
    experts, tasks = found["expert"], list(found["expert"])

    def measured(measure: Callable[[str, Tensor], float], names, tasks=tasks) -> dict:
        return {name: {task: measure(task, found[name][task]) for task in tasks} for name in names}

    merged = [name for name in found if name != "expert"]
    agreed = measured(lambda task, output: 100 * float(agreement(output, experts[task]).mean()), merged)
    yield _table("Agreement with the experts %, on inputs kept aside", agreed, "{:.1f}")
    if all(output.ndim > 1 and output.shape[1] > 1 for output in experts.values()):
        apart = measured(lambda task, output: float(divergence(output, experts[task]).mean()), merged)
        yield _table("KL(expert ‖ merged), nats, on inputs kept aside", apart, "{:.4f}")
    if known := [task for task in tasks if labels[task] is not None]:
        right = measured(lambda task, output: 100 * _accuracy(output, labels[task]), found, known)
        yield _table("Accuracy %, on inputs kept aside", right, "{:.1f}")


def _accuracy(output: Tensor, labels: list) -> float:
    return float((output.argmax(1) == torch.tensor(labels)).float().mean())


def _table(title: str, values: Mapping[str, Mapping[str, float]], form: str) -> Table:
    table = Table(title=title)
    table.add_column("task")
    for name in values:
        table.add_column(name, justify="right", style="bold" if name == "tinted" else None)
    tasks = list(next(iter(values.values())))
    for task in tasks:
        table.add_row(task, *(form.format(column[task]) for column in values.values()))
    table.add_section()
    means = (sum(column.values()) / len(tasks) for column in values.values())
    table.add_row("average", *map(form.format, means), style="bold")
    return table


FAMILY = {"sequence_classification": Classifiers, "causal_lm": LanguageModels}
"""Name -> what loads a configuration's models and inputs."""
