"""`tint`: the whole of Model Tinting in one call."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion_tinting.errors import same_tasks
from fusion_tinting.method.adaptation import adapt
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.task_vectors import require_module
from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.method.tints import AUTO
from fusion_tinting.run import artifact, checkpoint, layer_choice
from fusion_tinting.run.experts import predict_experts
from fusion_tinting.run.files import read_json, require_writable, write_json
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.storage import refuse_device
from fusion_tinting.run.unlabeled import Unlabeled, batch_schedule, to_device


def tint(
    pretrained: nn.Module,
    *,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    unlabeled: Mapping[str, Iterable],
    run_dir: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    on_step=None,
    info: Mapping | None = None,
    model_class: type[TintedModel] = TintedModel,
    **settings,
) -> TintedModel:
    """Merge `experts` by Model Tinting and return the tinted model.

    Args:
        pretrained: θ₀, any encoder.
        experts: task -> the encoder fine-tuned on it, of the same architecture. A mapping that loads
            on access keeps one expert at a time in memory.
        heads: task -> module from the encoder's output to logits (B, classes).
        unlabeled: task -> DataLoader, or another iterable of batches. Labels are ignored.
        run_dir: where checkpoints and the artefact go; a run found there is continued, a finished one
            loaded.
        processes: where it runs (default: this process, the device of `pretrained`).
        progress: whether to show progress bars.
        on_step: called with (step, history) after every iteration.
        info: what the host knows of the run for `tinting.json`: `ids`, `split`, `tensor_names`.
        model_class: a family's own kind of `TintedModel`.
        **settings: see `Settings`: `layer`, `sampler`, `objective`, `update`, `steps`, `batch_size`,
            `lr`, ...

    Raises:
        ValueError: bad settings, models that do not fit each other, tasks without head or data, or a
            `run_dir` of another run; always before any work is done.
        OSError: `run_dir` cannot be written.
    """
    require_module("`pretrained`", pretrained)
    options = Settings.from_options(settings)
    each = {"objective": options.objective} if isinstance(options.objective, Mapping) else {}
    same_tasks(list(experts), heads=heads, unlabeled=unlabeled, **each)
    processes = processes or Processes(next(pretrained.parameters(), torch.empty(0)).device)
    if options.update == "sequential" and processes.count > options.batch_size:
        raise ValueError(
            f"`batch_size={options.batch_size}` is smaller than the number of processes, "
            f"{processes.count}: each must have a share of every batch."
        )
    if options.task_vectors["storage"] == "mmap":
        refuse_device(processes.device)
    finished = _finished(run_dir)
    chosen = None if finished is None else finished["layer"]
    layer = chosen if options.layer == AUTO else options.layer
    model = model_class.untrained(pretrained, experts, heads, layer, options.task_vectors)
    model.info = dict(info or {})
    inputs = {task: _visited(task, unlabeled[task], options) for task in experts}
    identity = checkpoint.identity(model, options, inputs)
    if finished is not None:
        checkpoint.check_identity(Path(run_dir), artifact.identity(finished), identity)
        return artifact.restore(model, Path(run_dir), finished, model.info.get("tensor_names"))
    if run_dir is not None:
        checkpoint.check_folder(Path(run_dir), identity)
        if processes.rank == 0:
            require_writable(Path(run_dir))
    start = time.perf_counter()
    _require_fitting(model, inputs, processes)
    top = {task: options.kept_of(task) for task in experts}
    predictions = predict_experts(
        experts, heads, inputs, processes=processes, progress=progress, cache=True, top=top
    )
    if options.layer == AUTO:
        _choose(model, experts, inputs, predictions, options, run_dir, processes, progress)
    adapt(
        model,
        inputs,
        predictions,
        options,
        run_dir=None if run_dir is None else Path(run_dir),
        processes=processes,
        progress=progress,
        on_step=on_step,
    )
    model.info |= {
        "settings": options.to_json(),
        "samples": identity["samples"],
        "data": identity["data"],
        "seconds": round(time.perf_counter() - start, 3),
        "peak_memory_bytes": artifact.peak_memory(),
    }
    if run_dir is not None and processes.rank == 0:
        from fusion_tinting.reporting import plots  # here, for matplotlib takes a second to import

        model.save(run_dir)
        plots.write_all(model, Path(run_dir))
    return model


@torch.no_grad()
def _require_fitting(model: TintedModel, unlabeled: Mapping[str, Unlabeled], processes: Processes) -> None:
    """Try one sample of every task, so that the last task's misfit is no surprise after hours."""
    model.to(processes.device)
    for task, inputs in unlabeled.items():
        sample = inputs.first()
        try:
            with processes.autocast():
                model(to_device(sample, processes.device), task)
        except Exception as error:  # whatever a model raises
            raise ValueError(
                f"Task `{task}`: the model and its head cannot take this task's inputs, of which the first "
                f"is {_described(sample)}: {error}"
            ) from error


def _described(inputs: object) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key}: {_described(value)}" for key, value in inputs.items())
    if isinstance(inputs, Tensor):
        return f"a tensor {tuple(inputs.shape)} of {inputs.dtype}"
    return f"of type {type(inputs).__name__}"


def _finished(run_dir: str | Path | None) -> dict | None:
    """The manifest of a run that was finished in this folder."""
    if run_dir is None or not (Path(run_dir) / artifact.MANIFEST).is_file():
        return None
    return artifact.read_manifest(Path(run_dir))


def _choose(model, experts, inputs, predictions, options, run_dir, processes, progress) -> None:
    """Tint the layer that does best in short trials; a run that is continued keeps its choice."""
    path = None if run_dir is None else Path(run_dir) / "checkpoint" / "layer.json"
    run = checkpoint.identity(model, options, inputs)
    if path is not None and path.is_file():
        found = read_json(path)
        checkpoint.check_identity(path.parents[1], checkpoint.require_identity(path, found.get("run")), run)
    else:
        layer, agreements = layer_choice.choose_layer(
            model, inputs, predictions, options, processes=processes, progress=progress
        )
        found = {"layer": layer, "agreement": agreements, "run": run}
        if path is not None and processes.rank == 0:
            write_json(path, found)
    model.tint(found["layer"], experts)
    model.info["layer_choice"] = found["agreement"]


def _visited(task: str, source: Iterable, options: Settings) -> Unlabeled:
    """The samples that the schedule will visit: all of them, or as many as there are places in it."""
    try:
        unlabeled = Unlabeled.of(source)
    except ValueError as error:
        raise ValueError(f"Task `{task}`: {error}") from error
    places = options.steps * options.batch_size
    if places == 0 or places >= len(unlabeled):
        return unlabeled
    chosen = batch_schedule(len(unlabeled), places, 1, options.seed, f"visited {task}")
    return unlabeled.subset(sorted(chosen[0].tolist()))
