"""`mergekit-tint learn CONFIG RUN`: coefficients and tints from unlabeled inputs, and ready recipes."""

import shlex
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape

from fusion_tinting.errors import unknown
from fusion_tinting.families import family_class, family_of_architecture
from fusion_tinting.families.family import BY_ARCHITECTURE, Family, Models
from fusion_tinting.families.loading import reachable
from fusion_tinting.families.rows import Inputs, Rows
from fusion_tinting.mergekit import recipes, report, rest
from fusion_tinting.mergekit.checkpoints import Checkpoint, require_floating
from fusion_tinting.mergekit.class_names import classes_of
from fusion_tinting.mergekit.config import AUTO, FAMILIES, Config, read
from fusion_tinting.mergekit.folders import absolute, require_other
from fusion_tinting.mergekit.names import ModelNames
from fusion_tinting.mergekit.phases import Phases
from fusion_tinting.mergekit.quiet import quiet as quiet_libraries
from fusion_tinting.mergekit.rows import rows_of
from fusion_tinting.method.models import release
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.reporting import plots
from fusion_tinting.reporting.tables import Table, show
from fusion_tinting.run.info import RunInfo
from fusion_tinting.run.lock import require_free
from fusion_tinting.run.needs import GIGABYTE, Needs, activations, available
from fusion_tinting.run.peers import ended, started
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.storage import stored_files
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import split_aside
from fusion_tinting.tinting import tint


def command(config: Path, run_dir: Path, quiet: bool, report_on: int, dry_run: bool) -> None:
    """Learn, and print how the result does on inputs kept aside, and what can be done with it.

    Args:
        config: path of a configuration.
        run_dir: where all is written; a run found there continues.
        quiet: whether progress is not shown.
        report_on: how many inputs of a task the report looks at; with 0 there is none.
        dry_run: whether to stop before the experts are loaded, and to say what will be held in memory.
    """
    processes = started()
    first = processes.rank == 0
    progress, phases = first and not quiet, Phases(first and not quiet)
    with quiet_libraries():
        if dry_run:
            said = needs(read(config), run_dir, processes)
        else:
            model, aside = learn(read(config), run_dir, progress, phases, processes)
    if report_on and not dry_run:
        with phases("Report"):
            compared = report.compare(
                model, aside, progress, most=report_on, run_dir=run_dir, processes=processes
            )
    ended(processes)
    if first and dry_run:
        click.echo(said)
    elif first:
        _say(run_dir, report.tables(compared) if report_on else (), phases)


def _say(run_dir: Path, tables: Iterable[Table], phases: Phases) -> None:
    """Print the report, what can be done with a run, and how long it took."""
    for table in tables:
        show(table)
    run = shlex.quote(str(run_dir))
    Console(soft_wrap=True).print(
        f"\nIn [bold]{escape(str(run_dir))}[/]: coefficients, tints, curves. Next:"
    )
    click.echo(f"  mergekit-tint show {run}            # the coefficients, layer by layer")
    click.echo(f"  mergekit-tint variants {run} OUT    # a checkpoint for every task")
    if merge := recipes.command_of(run_dir):
        click.echo(f"  {merge}    # the shared model alone")
    for note in (*phases.notes, str(phases)):
        click.echo(note)


def learn(
    config: Config,
    run_dir: Path,
    progress: bool = True,
    phases: Phases | None = None,
    processes: Processes | None = None,
) -> tuple[TintedModel, dict[str, Inputs]]:
    """Adapt, write the artifact and the recipes, and return the tinted model and what was kept aside.

    Args:
        config: models, data and settings.
        run_dir: where all is written; a run found there continues.
        progress: whether to show progress bars.
        phases: told what is done, and what there is to say at the end.
        processes: where it runs, and the first of them writes; found out by default.

    Raises:
        FileNotFoundError: a model or data that cannot be reached; before anything is written.
        ValueError: bad settings, models or data, named; before anything is written.
    """
    phases, processes = phases or Phases(progress), processes or started()
    with phases("Models and data"):
        family, taught, aside = _loaded(config, run_dir)
    ids = {name: absolute(path) for name, path in family.models.paths.items()}
    with phases("Adaptation"):
        model = tint(
            release(family.pretrained),
            experts=family.experts,
            heads=family.heads,
            unlabeled={task: inputs.unlabeled for task, inputs in taught.items()},
            run_dir=run_dir,
            processes=processes,
            progress=progress,
            info=RunInfo(ids=ids, tensor_names=_names(family)),
            **family.settings({**family.defaults, **config.adapt}),
        )
    if processes.rank:
        return model, aside
    experts = {task: ids[task] for task in config.by_task}
    with phases("Pictures and recipes"):
        plots.write_pictures(model, run_dir)
        lacking = recipes.write(
            run_dir, ids[PRETRAINED], experts, model.tasks, family.recipes, family.variance_epsilon
        )
        family.write_beside(run_dir)
        rest.remember(run_dir, experts)
    if lacking is not None:
        phases.notes.append(
            f"There is no recipe for the shared model alone: {lacking} `variants` writes it, in OUT/shared."
        )
    return model, aside


def needs(config: Config, run_dir: Path, processes: Processes) -> str:
    """Return what an adaptation will hold in memory, beside what is there, as a sentence.

    Args:
        config: models, data and settings.
        run_dir: where all would be written.
        processes: where it would run.

    Raises:
        FileNotFoundError: a model or data that cannot be reached.
        ValueError: bad settings, models or data, named; or too little memory.
    """
    family, taught, _ = _loaded(config, run_dir)
    settings = Settings.from_options(family.settings({**family.defaults, **config.adapt}))
    device = processes.device
    if settings.task_vectors["storage"] == "stream":
        stored_files(family.experts)
    largest = max(activations(family.pretrained, t.unlabeled, settings, device) for t in taught.values())
    held = replace(Needs.of(family.pretrained, family.heads, settings, processes), activations=largest)
    held.require_room(device)
    free = available(device) / GIGABYTE
    return f"To be held: {held}; free on `{device}`: {free:.2f} GB. Nothing was learned."


def _loaded(config: Config, run_dir: Path) -> tuple[Family, dict[str, Inputs], dict[str, Inputs]]:
    """Return the family with its models, what teaches and what is kept aside."""
    require_free(run_dir)
    _require_models(config, run_dir)
    kind = family_of(config)
    rows = {task: rows_of(expert) for task, expert in config.by_task.items()}
    family = kind(_models(config, kind, rows))
    family.check()
    _require_rest(family)
    family.load()
    return family, *_split_all(config, family, rows)


def _require_models(config: Config, run_dir: Path) -> None:
    """Refuse one model for two tasks, a run in a model's own folder, and files that are no whole model."""
    places = {task: absolute(expert.model) for task, expert in config.by_task.items()}
    for place in places.values():
        same = [task for task in places if places[task] == place]
        if len(same) > 1:
            raise ValueError(
                f"The tasks `{same[0]}` and `{same[1]}` have one expert, `{place}`. Name another."
            )
    folders = [path for path in map(Path, (absolute(config.base_model), *places.values())) if path.is_dir()]
    require_other(run_dir, folders)
    for folder in folders:
        require_floating(Checkpoint.open(str(folder)))


def family_of(config: Config) -> type[Family]:
    """Return the class that loads what a configuration names; with `family: auto` by the first expert.

    Args:
        config: as read.

    Raises:
        FileNotFoundError: no such model.
        ValueError: an architecture that no family handles, or another than the one that is named; or keys
            of `data` that do nothing.
    """
    model, architecture = config.experts[0].model, "none"
    with nullcontext() if config.family == AUTO else suppress(OSError, ValueError):  # loading it says why
        architecture = _architecture(model)
    told = family_of_architecture(architecture)
    if config.family == AUTO and told is None:
        raise unknown(f"family of the architecture in `{model}`", architecture, FAMILIES[1:])
    name = told if config.family == AUTO and told is not None else config.family
    if told not in (None, name, "sentence_embedding"):  # which any bare encoder passes for
        raise ValueError(
            f"`family: {name}` is not that of `{model}`: its architecture, {architecture}, is of the "
            f"family {told}. Name that, or leave `family` out."
        )
    family = family_class(name)
    config.require_read(family.keys, name)
    return family


def _architecture(model: str) -> str:
    from transformers import AutoConfig

    architectures = reachable(AutoConfig.from_pretrained, model).architectures or ["none"]
    return str(architectures[0])


def _models(config: Config, kind: type[Family], rows: Mapping[str, Rows]) -> Models:
    classes = {}
    if "classes" in kind.keys:
        classes = {task: classes_of(expert.data, rows[task]) for task, expert in config.by_task.items()}
    experts = {task: expert.model for task, expert in config.by_task.items()}
    return Models(config.base_model, experts, classes=classes)


def _require_rest(family: Family) -> None:
    """Refuse an expert that was changed outside the part that is merged: that change would be lost."""
    if family.part is None:
        return
    base = Checkpoint.open(family.models.base)
    for path in family.models.experts.values():
        expert = Checkpoint.open(path)
        for name in expert.files:
            inside = name.startswith(family.part) or f"{family.part}{name}" in base.files
            if inside or name.endswith("position_ids"):  # a buffer that older checkpoints hold
                continue
            tensor = expert.tensor(name)
            if name not in base.files or not torch.equal(base.tensor(name).to(tensor.dtype), tensor):
                raise ValueError(
                    f"The expert `{path}` has another `{name}` than the base. Only `{family.part}*` is "
                    "merged; the rest is the base's. To go without that change, save that part alone: "
                    "`CLIPModel.from_pretrained(…).vision_model.save_pretrained(…)`."
                )


def _names(family: Family) -> Mapping[str, str]:
    """Names on disk: of models that mergekit merges by their architecture those in the base's own files."""
    if family.recipes != BY_ARCHITECTURE:
        return {**family.names, **family.head_names}
    checkpoint = Checkpoint.open(family.models.base)
    stored = ModelNames(checkpoint.folder).of(checkpoint.files)
    names = family.pretrained.model.state_dict()
    return {family.parameter_of(name, ""): stored.get(name, name) for name in names}


def _split_all(
    config: Config, family: Family, rows: Mapping[str, Rows]
) -> tuple[dict[str, Inputs], dict[str, Inputs]]:
    taught, aside = {}, {}
    for task, expert in config.by_task.items():
        try:
            inputs = Inputs(family.inputs(task, rows[task]), family.labels(task, rows[task]))
        except UnicodeDecodeError as error:
            raise ValueError(f"The data {rows[task].where} is not in UTF-8: {error}") from error
        taught[task], aside[task] = _split(inputs, expert.data.aside, task)
    return taught, aside


def _split(inputs: Inputs, share: float, task: str) -> tuple[Inputs, Inputs]:
    """Return what teaches, and what is kept aside: another draw for each task, the same in every run."""
    count, labels = len(inputs.unlabeled), inputs.labels
    parts = (rows.sort().values for rows in split_aside(task, count, round(share * count), 0))
    taught, aside = (
        Inputs(inputs.unlabeled.subset(part.tolist()), None if labels is None else labels[part])
        for part in parts
    )
    return taught, aside
