"""mergekit's own commands, with all their options, our merge method known, and their output checked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import click
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts import merge_raw_pytorch, multimerge, run_yaml

from fusion_tinting.mergekit import outputs, preflight, reading
from fusion_tinting.mergekit.checkpoints import Checkpoint, require_same
from fusion_tinting.mergekit.cli import FORCE, MOVED
from fusion_tinting.mergekit.clip_variants import run_of
from fusion_tinting.mergekit.folders import moves_of, require_empty
from fusion_tinting.mergekit.method import NAME, register
from fusion_tinting.mergekit.writer import streamed
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.lock import held
from fusion_tinting.run.manifest import MANIFEST, Manifest

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")


def yaml_command() -> click.Command:
    """Make the command `mergekit-tint yaml RECIPE OUT`."""

    def run(config_file: str, out_path: str, force: bool, moved: tuple[str, ...], **given: Any) -> None:
        options, out, moves = _options(given), _folder(out_path), moves_of(moved)
        config, text = reading.read(Path(config_file).expanduser(), moves=moves)
        require_empty(out, force)
        _require_run(config)
        _merge(config, options, out, force, text)

    return _like(run_yaml.main, "yaml", run)


def multi_command() -> click.Command:
    """Make the command `mergekit-tint multi CONFIG`."""

    def run(
        config_file: str,
        intermediate_dir: str,
        out_path: str | None,
        lazy: bool,
        force: bool,
        moved: tuple[str, ...],
        **given: Any,
    ) -> None:
        options, folder, moves = _options(given), _folder(intermediate_dir), moves_of(moved)
        text = reading.read_several(Path(config_file).expanduser(), moves)
        configs, needs = multimerge.load_config(text, str(folder))
        if None in configs and not out_path:
            raise click.UsageError("`--out-path` is missing: the recipe without a `name` is written there.")
        out = {name: folder / name if name else _folder(out_path) for name in configs}
        kept = [name for name in configs if lazy and _holds_model(out[name])]
        pending = [name for name in TopologicalSorter(needs).static_order() if name not in kept]
        for name in pending:
            require_empty(out[name], force)
            _require_run(configs[name])
            if not needs[name]:
                preflight.check(configs[name], options, out[name])
        for name in kept:
            click.echo(f"Kept `{out[name]}`, which is there; `--no-lazy --force` merges it anew.", err=True)
            outputs.check(configs[name], options, out[name])
        for name in pending:
            _merge(configs[name], options, out[name], force)

    return _like(multimerge.main, "multi", run)


def pytorch_command() -> click.Command:
    """Make the command `mergekit-tint pytorch CONFIG OUT`."""

    def run(
        config_path: str,
        out_path: str,
        tensor_union: bool,
        tensor_intersection: bool,
        force: bool,
        moved: tuple[str, ...],
        **given: Any,
    ) -> None:
        options, out, moves = _options(given), _folder(out_path), moves_of(moved)
        path, kind = Path(config_path).expanduser(), merge_raw_pytorch.RawPyTorchMergeConfig
        config, _ = reading.read(path, kind, moves)
        require_empty(out, force)
        _require_run(config)
        if tensor_union and tensor_intersection:
            raise click.UsageError("`--tensor-union` and `--tensor-intersection` exclude each other.")
        partial = tensor_intersection if tensor_union or tensor_intersection else None
        tasks, wanted = preflight.check_files(config, options, out, partial)
        storage = options.device if options.low_cpu_memory else "cpu"
        with _writing(out, force):
            Executor(tasks, math_device=options.device, storage_device=storage).execute()
            advice = "Look at mergekit's messages above."
            require_same(Checkpoint.open(str(out)).shapes(), wanted, f"`{out}` is not whole", advice)

    return _like(merge_raw_pytorch.main, "pytorch", run)


def _merge(
    config: MergeConfiguration, options: MergeOptions, out: Path, force: bool, text: str | None = None
) -> None:
    preflight.check(config, options, out)
    # The path is absolute: mergekit's model card asks the hub about a relative one.
    with _writing(out, force):
        run_merge(config.model_copy(deep=True), str(out), options, config_source=text)
        outputs.check(config, options, out)


@contextmanager
def _writing(out: Path, force: bool) -> Iterator[None]:
    """Keep a folder from other commands, without the weights of an earlier model."""
    with held(out), streamed():
        require_empty(out, force)
        _clear(out)
        yield


def _require_run(config: Any) -> None:
    """Refuse models that are not those that the recipe's λ were learned from.

    The recipe's coefficients are a run's if its manifest is beside them. A look at paths and times tells
    whether a model is the run's; where it does not, its content is compared.
    """
    coefficients = (config.parameters or {}).get("coefficients")
    manifest_path = Path(coefficients).with_name(MANIFEST) if isinstance(coefficients, str) else None
    if manifest_path is None or not manifest_path.is_file() or not config.models or not config.base_model:
        return
    manifest, now = Manifest.read(manifest_path.parent), {PRETRAINED: str(config.base_model)}
    now |= {str((entry.parameters or {}).get("task")): str(entry.model) for entry in config.models}
    was = {PRETRAINED: manifest.base.id, **{task: entry.id for task, entry in manifest.experts.items()}}
    if any(model is None for model in was.values()) or not was.keys() <= now.keys():
        return
    folders = {name: str(Path(path).parent) if Path(path).is_file() else path for name, path in now.items()}
    elsewhere = {was[name]: folders[name] for name in was if was[name] != folders[name]}
    run_at = manifest_path.stat().st_mtime_ns
    if elsewhere or any(_changed_after(Path(folder), run_at) for folder in folders.values()):
        run_of(manifest_path.parent, elsewhere)


def _changed_after(folder: Path, time: int) -> bool:
    return any(path.stat().st_mtime_ns > time for pattern in WEIGHTS for path in folder.glob(pattern))


def _folder(path: str) -> Path:
    return Path(path).expanduser().resolve()


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
        params=[*theirs.params, FORCE, MOVED],
        callback=callback,
        help=theirs.help or f"mergekit's own `{theirs.name}`, with `merge_method: {NAME}`.",
    )
