"""mergekit's own commands, with all their options, our merge method known, and their output checked."""

from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import click
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts import merge_raw_pytorch, multimerge, run_yaml

from fusion_tinting.mergekit import outputs, plan, preflight, reading
from fusion_tinting.mergekit.checkpoints import Checkpoint, require_same
from fusion_tinting.mergekit.method import NAME, register
from fusion_tinting.mergekit.recipes import require_empty, require_other
from fusion_tinting.mergekit.writer import streamed

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")
FORCE = click.Option(["--force"], is_flag=True, help="Write into a folder that is not empty.")


def yaml_command() -> click.Command:
    """Make the command `mergekit-tint yaml RECIPE OUT`."""

    def run(config_file: str, out_path: str, force: bool, **given: Any) -> None:
        options, out = _options(given), Path(out_path).resolve()
        config, text = reading.read(Path(config_file))
        require_empty(out, force)
        _merge(config, options, out, text)

    return _like(run_yaml.main, "yaml", run)


def multi_command() -> click.Command:
    """Make the command `mergekit-tint multi CONFIG`."""

    def run(
        config_file: str, intermediate_dir: str, out_path: str | None, lazy: bool, force: bool, **given: Any
    ) -> None:
        options, folder = _options(given), Path(intermediate_dir).resolve()
        configs, needs = multimerge.load_config(reading.read_several(Path(config_file)), str(folder))
        if None in configs and not out_path:
            raise click.UsageError("`--out-path` is missing: the recipe without a `name` is written there.")
        out = {name: folder / name if name else Path(out_path).resolve() for name in configs}
        kept = [name for name in configs if lazy and _holds_model(out[name])]
        pending = [name for name in TopologicalSorter(needs).static_order() if name not in kept]
        for name in pending:
            require_empty(out[name], force)
            if not needs[name]:
                preflight.check(configs[name], options, out[name])
        for name in kept:
            click.echo(f"Kept `{out[name]}`, which is there; `--no-lazy --force` merges it anew.", err=True)
            outputs.check(configs[name], options, out[name])
        for name in pending:
            _merge(configs[name], options, out[name])

    return _like(multimerge.main, "multi", run)


def pytorch_command() -> click.Command:
    """Make the command `mergekit-tint pytorch CONFIG OUT`."""

    def run(
        config_path: str,
        out_path: str,
        tensor_union: bool,
        tensor_intersection: bool,
        force: bool,
        **given: Any,
    ) -> None:
        options, out = _options(given), Path(out_path).resolve()
        config, _ = reading.read(Path(config_path), merge_raw_pytorch.RawPyTorchMergeConfig)
        require_empty(out, force)
        paths = filter(None, (config.base_model, *(model.model for model in config.models)))
        files = {ModelReference(model={"path": path}): Checkpoint.open(path) for path in paths}
        require_other(out, (checkpoint.folder for checkpoint in files.values()))
        tasks = merge_raw_pytorch.plan_flat_merge(
            config, str(out), tensor_union, tensor_intersection, options
        )
        if config.merge_method == NAME:
            merges = plan.merges_of(plan.saved(tasks), files, partial=tensor_union)
            if tensor_intersection:
                merges = [merge for merge in merges if merge.has_coefficients]
                tasks = plan.restricted(tasks, {merge.name for merge in merges})
            preflight.require_sound(merges, next(iter(files.values())))
        _clear(out)
        storage = options.device if options.low_cpu_memory else "cpu"
        with streamed():
            Executor(tasks, math_device=options.device, storage_device=storage).execute()
        _check_flat(list(files.values()), plan.names_of(tasks) if tensor_intersection else None, out)

    return _like(merge_raw_pytorch.main, "pytorch", run)


def _merge(config: MergeConfiguration, options: MergeOptions, out: Path, text: str | None = None) -> None:
    preflight.check(config, options, out)
    _clear(out)
    # The path is absolute: mergekit's model card asks the hub about a relative one.
    with streamed():
        run_merge(config.model_copy(deep=True), str(out), options, config_source=text)
    outputs.check(config, options, out)


def _check_flat(files: list[Checkpoint], names: list[str] | None, out: Path) -> None:
    wanted = {name: shape for file in reversed(files) for name, shape in file.shapes().items()}
    if names is not None:
        wanted = {name: wanted[name] for name in names}
    advice = "Look at mergekit's messages above."
    require_same(Checkpoint.open(str(out)).shapes(), wanted, f"`{out}` is not whole", advice)


def _options(given: dict) -> MergeOptions:
    options = MergeOptions(**given)
    options.apply_global_options()
    return options


def _holds_model(folder: Path) -> bool:
    """As mergekit decides that there is nothing left to do."""
    names = multimerge.MODEL_CHECK_FILENAMES
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in names)


def _clear(out: Path) -> None:
    """Remove an earlier model's weights, which would be read in place of the new ones or beside them."""
    for pattern in WEIGHTS:
        for path in out.glob(pattern):
            path.unlink()


def _like(theirs: click.Command, name: str, callback: Callable) -> click.Command:
    register()
    return type(theirs)(
        name=name,
        params=[*theirs.params, FORCE],
        callback=callback,
        help=theirs.help or f"mergekit's own `{theirs.name}`, with `merge_method: {NAME}`.",
    )
