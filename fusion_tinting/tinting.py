"""`tint`: the whole of Model Tinting in one call, the method and what a run needs around it."""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusion_tinting.errors import explained, of_task, require_mappings, same_tasks
from fusion_tinting.method.coefficients import Init
from fusion_tinting.method.recomputation import require_blocks
from fusion_tinting.method.schedule import batch_schedule
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tints import AUTO, resolve_layer
from fusion_tinting.run.artifact import COEFFICIENTS, CURVES, read_coefficients
from fusion_tinting.run.checkpoint import check_folder, checkpoint_path
from fusion_tinting.run.context import Context, OnStep
from fusion_tinting.run.experts import at_hand, predict_experts
from fusion_tinting.run.files import path_of, remove_unfinished, require_no_folder
from fusion_tinting.run.first_look import first_look
from fusion_tinting.run.identity import Identity
from fusion_tinting.run.info import RunInfo
from fusion_tinting.run.layer_choice import choose_or_recall
from fusion_tinting.run.lock import held
from fusion_tinting.run.manifest import MANIFEST, Manifest, peak_memory
from fusion_tinting.run.needs import Needs, require_precision
from fusion_tinting.run.peers import naming_the_lost
from fusion_tinting.run.processes import Processes, fitting_heap
from fusion_tinting.run.samples import described
from fusion_tinting.run.sharding import require_shardable
from fusion_tinting.run.storage import refuse_device
from fusion_tinting.run.surroundings import one_at_a_time, undisturbed
from fusion_tinting.run.tinted_model import TintedModel, plain_models
from fusion_tinting.run.top_predictions import classes_kept
from fusion_tinting.run.training import M, train
from fusion_tinting.run.unlabeled import Unlabeled


@one_at_a_time
@naming_the_lost
@undisturbed()
def tint(
    pretrained: nn.Module,
    *,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    unlabeled: Mapping[str, Iterable[Any]],
    inputs: Callable[[Any], Any] | None = None,
    run_dir: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    on_step: OnStep | None = None,
    info: RunInfo | None = None,
    model_class: type[TintedModel] = TintedModel,
    **settings: Any,
) -> TintedModel:
    """Merge `experts` by Model Tinting and return the tinted model.

    Args:
        pretrained: θ₀, any encoder. All is computed in float32, on copies.
        experts: task -> the encoder fine-tuned on it, of the same architecture. A mapping that loads
            on access keeps one expert at a time in memory.
        heads: task -> module from the encoder's output to logits (B, classes).
        unlabeled: task -> DataLoader, data set, tensor of samples, or another iterable of batches. Of a
            batch the encoder is given what its `forward` takes: of a mapping by name, of a tuple by
            position. Labels are left out.
        inputs: a batch -> what the encoder is given, where its signature cannot tell: a mapping of keyword
            arguments, a tuple of positional ones, or a single argument.
        run_dir: where checkpoints and the artifact go; a run that is there is continued, a finished one
            loaded.
        processes: where it runs (default: this process, the device of `pretrained`).
        progress: whether to show progress bars.
        on_step: called with (step, history) for every iteration; on a GPU for several at a time.
        info: what the host knows of the run for `tinting.json`: `ids`, `split`, `tensor_names`.
        model_class: a family's own kind of `TintedModel`.
        **settings: see `Settings`: `layer`, `sampler`, `objective`, `update`, `steps`, `batch_size`,
            `lr`, ...

    Raises:
        ValueError: bad settings, models that do not fit each other or their inputs, tasks without head or
            data, or a `run_dir` of another run; always before any work is done.
        OSError: `run_dir` cannot be written, another run works there now, or another process has died.
    """
    require_mappings(experts=experts, heads=heads, unlabeled=unlabeled)
    _check_kinds(processes, info, model_class, on_step)
    pretrained, experts, heads = plain_models(pretrained, experts, heads)
    options = Settings.from_options(settings)
    processes = processes or Processes(next(pretrained.parameters(), torch.empty(0)).device)
    context = Context(
        processes, None if run_dir is None else path_of("run_dir", run_dir), progress, on_step
    )
    _check(options, context, pretrained, list(experts), heads, unlabeled)
    info = info or RunInfo()
    options = replace(options, init=_start(options, list(experts), info))
    finished = _finished(context.run_dir)
    layer = (None if finished is None else finished.layer) if options.layer == AUTO else options.layer
    model = model_class.untrained(
        pretrained, experts, heads, layer, options.task_vectors, processes=processes
    )
    model.info = info
    visited = {task: _visited(task, unlabeled[task], pretrained, inputs, options) for task in experts}
    with fitting_heap(model.vectors.size, processes.device, lean=model.vectors.lean):
        first_look(model, experts, heads, visited, options, processes)
        return _run(model, experts, heads, visited, options, context, finished)


def _run(
    model: M,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    inputs: Mapping[str, Unlabeled],
    options: Settings,
    context: Context,
    finished: Manifest | None,
) -> M:
    """Adapt and save, or load the finished run that is in the folder."""
    run_dir, processes = context.run_dir, context.processes
    identity = Identity.of(model, options, inputs, model.info.split, processes)
    context = replace(context, identity=identity)
    if finished is not None and run_dir is not None:
        remove_unfinished(run_dir, of_the_dead=True)
        identity.require_same(finished.identity, run_dir)
        return model.restore(run_dir, finished, model.info.tensor_names)
    with held(run_dir, processes):
        _require_unfinished(run_dir, identity)
        _adapt(model, experts, heads, inputs, options, context)
        model.info = replace(model.info, settings=options.to_json(), **identity.told())
        if run_dir is not None and (context.writes or processes.shards):
            model.save(run_dir, context.writes)
    return model


def _adapt(
    model: TintedModel,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    inputs: Mapping[str, Unlabeled],
    options: Settings,
    context: Context,
) -> None:
    """Ask the experts, choose the layer where that is asked for, and train."""
    start = time.perf_counter()
    top = {task: classes_kept(options, task) for task in experts}
    experts = at_hand(model.encoder, model.vectors, experts)
    predictions = predict_experts(
        experts,
        heads,
        inputs,
        processes=context.processes,
        progress=context.shows_progress,
        cache=True,
        top=top,
    )
    if options.layer == AUTO:
        name, trials = choose_or_recall(model, inputs, predictions, options, context)
        layer = resolve_layer(model.encoder, name)
        if layer is not None:
            model.tint(layer, experts)
        model.info = replace(model.info, layer_choice=trials)
    train(model, inputs, predictions, options, context)
    seconds = round(time.perf_counter() - start, 3)
    model.info = replace(model.info, seconds=seconds, peak_memory_bytes=peak_memory())


def _check_kinds(processes: object, info: object, model_class: object, on_step: object) -> None:
    """Refuse what is none of the kinds that `tint` takes."""
    for name, given, kind in (("processes", processes, Processes), ("info", info, RunInfo)):
        if not (given is None or isinstance(given, kind)):
            raise ValueError(f"`{name}` must be a `{kind.__name__}`. Found {described(given)}.")
    if not (isinstance(model_class, type) and issubclass(model_class, TintedModel)):
        raise ValueError(f"`model_class` must be a kind of `TintedModel`. Found {model_class!r}.")
    if on_step is None:
        return
    if not callable(on_step):
        raise ValueError(f"`on_step` must be a function. Found {on_step!r}.")
    try:
        inspect.signature(on_step).bind(0, None)
    except TypeError as error:
        raise ValueError(
            f"`on_step` is called with (step, history), and does not take it: {error}."
        ) from error
    except ValueError:  # what is written in C has no signature
        return


def _check(
    options: Settings,
    context: Context,
    pretrained: nn.Module,
    tasks: list[str],
    heads: Mapping[str, nn.Module],
    unlabeled: Mapping[str, Iterable[Any]],
) -> None:
    """Refuse tasks without head, data or objective, and settings that the processes cannot follow."""
    objectives = {"objective": options.objective} if isinstance(options.objective, Mapping) else {}
    same_tasks(tasks, heads=heads, unlabeled=unlabeled, **objectives)
    count = context.processes.count
    require_shardable(options, context.processes)
    by_task = options.update == "joint" and not context.processes.shards
    if by_task and count > len(tasks):
        raise ValueError(
            f"`update=joint` gives every process tasks of its own: {count} processes are too many for "
            f"{len(tasks)} tasks. Use fewer, or `update=sequential`."
        )
    if not by_task and count > options.batch_size:
        raise ValueError(
            f"`batch_size={options.batch_size}` is smaller than the number of processes, "
            f"{count}: each must have a share of every batch."
        )
    if options.task_vectors["storage"] == "mmap":
        refuse_device(context.processes.device)
    if options.gradient_checkpointing:
        require_blocks(pretrained)
    require_precision(context.processes.device, [pretrained, *heads.values()])
    if _finished(context.run_dir) is None:  # such a run is loaded, which takes less
        needs = Needs.of(pretrained, heads, options, context.processes)
        needs.require_room(context.processes.device)


def _start(options: Settings, tasks: list[str], info: RunInfo) -> Init:
    """Return where λ starts, read from the folder of an earlier run where `init` names one."""
    if not isinstance(options.init, str):
        return options.init
    path = path_of("init", options.init)
    if not path.exists():
        raise FileNotFoundError(f"There is no run `{path}`, which `init` names; a number has no quotes.")
    columns, rows = read_coefficients(path)
    if missing := [task for task in tasks if task not in columns]:
        raise ValueError(f"`init={path}` has no λ for the tasks {missing}. It has those of {columns}.")
    places = [columns.index(task) for task in tasks]
    names = {on_disk: name for name, on_disk in info.tensor_names.items()}
    return {names.get(name, name): row[places] for name, row in rows.items()}


def _require_unfinished(run_dir: Path | None, identity: Identity) -> None:
    """Refuse a folder that holds another run, or that was finished while models were loaded."""
    if run_dir is None:
        return
    for path in (run_dir / MANIFEST, run_dir / COEFFICIENTS, run_dir / CURVES, checkpoint_path(run_dir)):
        require_no_folder(path)
    check_folder(run_dir, identity)
    if _finished(run_dir) is not None:
        raise ValueError(
            f"`{run_dir}` has been finished by another process just now. Start again to load it."
        )


def _finished(run_dir: Path | None) -> Manifest | None:
    """Return the manifest of a run that was finished in this folder."""
    return Manifest.read(run_dir) if run_dir is not None and (run_dir / MANIFEST).is_file() else None


def _visited(
    task: str,
    source: Iterable[Any],
    encoder: nn.Module,
    inputs: Callable[[Any], Any] | None,
    options: Settings,
) -> Unlabeled:
    """Return the samples that the schedule will visit: all, or as many as there are places in it."""
    if inputs is not None and not callable(inputs):
        raise ValueError(
            "`inputs` must be a function, from a batch to what the encoder takes. Found "
            f"{described(inputs)}."
        )
    with of_task(task), explained("its inputs cannot be read"):
        unlabeled = Unlabeled.of(source, encoder, inputs)
        unlabeled.first(2)
    places = options.steps * options.batch_size
    if places == 0 or places >= len(unlabeled):
        return unlabeled
    chosen = batch_schedule(len(unlabeled), places, 1, options.seed, f"visited {task}")
    return unlabeled.subset(sorted(chosen[0].tolist()))
