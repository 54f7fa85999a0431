"""`mergekit-tint learn CONFIG RUN`: coefficients and tints from unlabelled inputs, and ready recipes."""

import importlib
from pathlib import Path

import click
import torch
from rich.console import Console

from fusion_tinting.errors import unknown
from fusion_tinting.mergekit import recipes, report
from fusion_tinting.mergekit.cli import FILE, FOLDER
from fusion_tinting.mergekit.config import FAMILIES, Config, read
from fusion_tinting.mergekit.quiet import quiet as quiet_libraries
from fusion_tinting.mergekit.rows import Inputs, reachable
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.reporting.tables import show
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.unlabeled import batch_schedule
from fusion_tinting.tinting import tint

FAMILY = {
    "sequence_classification": "classifiers:Classifiers",
    "causal_lm": "language_models:LanguageModels",
    "clip": "clip_towers:ClipTowers",
}
"""Family -> the module and class in this package that load a configuration's models and inputs.

What a family class offers, made from a `Config`. Its constructor and `inputs` check whatever can be
checked and raise ValueError or FileNotFoundError: nothing has been written by then.

    reads         class attribute: the keys of `data` it reads beside `config.EVERY_FAMILY_READS`
    defaults      settings of `adapt` where the configuration names none
    pretrained    θ₀, an encoder
    experts       task -> encoder of the expert; may load on access (`LoadedExperts`)
    heads         task -> head
    head          what `layer: head` tints: `head`, or the name of a submodule of the encoder
    names         parameter name (of a head: `head.` and its name there) -> tensor name on disk
    inputs(task)  `rows.Inputs`: all of the task's inputs, in order, and their labels or None
    recipes       class attribute: what of mergekit can merge such models, `recipes.YAML` or `recipes.FILES`
    finish(run)   optional: writes what a run needs beside
"""

ENDINGS = {"ForSequenceClassification": "sequence_classification", "ForCausalLM": "causal_lm",
           "LMHeadModel": "causal_lm", "CLIPModel": "clip", "CLIPVisionModel": "clip",
           "CLIPVisionModelWithProjection": "clip"}  # fmt: skip
"""Ending of a transformers architecture -> its family."""


@click.command("learn")
@click.argument("config", type=FILE)
@click.argument("run_dir", type=FOLDER, metavar="RUN")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def command(config: Path, run_dir: Path, quiet: bool) -> None:
    """Learn coefficients and tints as CONFIG says, into the folder RUN; a run found there continues."""
    with quiet_libraries():
        model, aside = learn(read(config), run_dir, progress=not quiet)
    for table in report.tables(report.compare(model, aside), aside):
        show(table)
    Console().print(f"\nIn [bold]{run_dir}[/]: coefficients, tints, curves. Next:")
    click.echo(f"  mergekit-tint show {run_dir}            # the coefficients, layer by layer")
    click.echo(f"  mergekit-tint variants {run_dir} OUT    # a checkpoint for every task")
    if merge := recipes.command_of(run_dir):
        click.echo(f"  {merge}    # the shared model alone")


def learn(config: Config, run_dir: Path, progress: bool = True) -> tuple[TintedModel, dict[str, Inputs]]:
    """Adapt, write the artefact and the recipes, and return the tinted model and what was kept aside.

    Raises:
        FileNotFoundError, ValueError: bad settings, models or data, named; before anything is written.
    """
    by_task = config.by_task
    models = family_of(config)(config)
    taught, aside = {}, {}
    for task, expert in by_task.items():
        taught[task], aside[task] = _split(models.inputs(task), expert.data.aside, task)
    settings = {**models.defaults, **config.adapt}
    if settings.get("layer", "head") == "head":
        settings["layer"] = models.head
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = {task: recipes.absolute(expert.model) for task, expert in by_task.items()}
    base = recipes.absolute(config.base_model)
    model = tint(
        models.pretrained,
        experts=models.experts,
        heads=models.heads,
        unlabeled={task: inputs.unlabeled for task, inputs in taught.items()},
        run_dir=run_dir,
        processes=Processes(device),
        progress=progress,
        info={"ids": {PRETRAINED: base, **paths}, "tensor_names": models.names},
        **settings,
    )
    recipes.write(run_dir, base, paths, model.tasks, models.recipes)
    if hasattr(models, "finish"):
        models.finish(run_dir)
    return model, aside


def family_of(config: Config) -> type:
    """The class that loads what a configuration names; with `family: auto` by the first expert.

    Raises:
        FileNotFoundError: no such model.
        ValueError: an architecture that no family handles, or keys of `data` that do nothing.
    """
    family = config.family if config.family != "auto" else _told(config.experts[0].model)
    module, _, name = FAMILY[family].partition(":")
    found = getattr(importlib.import_module(f"fusion_tinting.mergekit.{module}"), name)
    config.require_read(found.reads, family)
    return found


def _told(model: str) -> str:
    from transformers import AutoConfig

    architectures = reachable(AutoConfig.from_pretrained, model).architectures or ["none"]
    for ending, family in ENDINGS.items():
        if architectures[0].endswith(ending):
            return family
    raise unknown(f"family of the architecture in `{model}`", architectures[0], FAMILIES[1:])


def _split(inputs: Inputs, share: float, task: str) -> tuple[Inputs, Inputs]:
    """What teaches, and what is kept aside: another draw for each task, the same in every run."""
    count = len(inputs.unlabeled)
    if count < 2:
        raise ValueError(f"Task `{task}` has a single input; at least two are needed: one is kept aside.")
    kept = min(max(1, round(share * count)), count - 1)
    order = batch_schedule(count, count, 1, 0, f"aside {task}")[0]
    parts = order[kept:].sort().values, order[:kept].sort().values
    labels = inputs.labels
    taught, aside = (
        Inputs(inputs.unlabeled.subset(part.tolist()), None if labels is None else labels[part])
        for part in parts
    )
    return taught, aside
