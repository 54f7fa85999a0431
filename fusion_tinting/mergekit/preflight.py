"""What is wrong with a merge by our method, before anything is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.options import MergeOptions
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge

from fusion_tinting.errors import abbreviate
from fusion_tinting.families.loading import require_one_architecture
from fusion_tinting.mergekit.checkpoints import Checkpoint, require_floating, require_same
from fusion_tinting.mergekit.folders import require_other, require_plain
from fusion_tinting.mergekit.method import NAME, coefficient
from fusion_tinting.mergekit.outputs import BY_NAME, LAYER, opened, vocabulary_may_change, when_loaded
from fusion_tinting.mergekit.plan import (
    Checkpoints,
    Merge,
    merges_of,
    names_of,
    planned,
    restricted,
    saved,
)
from fusion_tinting.mergekit.run_files import coefficient_file, tint_file

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check(config: MergeConfiguration, options: MergeOptions, out: Path) -> None:
    """Refuse all that can be seen to fail before a merge.

    Raises:
        FileNotFoundError, ValueError: naming the model, task, tensor or file.
    """
    for model in config.referenced_models():
        if Path(model.model.path).is_file():
            raise ValueError(
                f"`{model.model.path}` is a file: `mergekit-tint pytorch` merges files, `yaml` and `multi` "
                "the folders of whole models."
            )
    checkpoints = {model: opened(model, options) for model in config.referenced_models()}
    require_other(out, (checkpoint.folder for checkpoint in checkpoints.values()))
    if config.merge_method != NAME:
        return
    for checkpoint in checkpoints.values():
        require_floating(checkpoint)
    models = sorted(checkpoints, key=lambda model: (model != config.base_model, str(model)))
    settings = {model: model.config(options.trust_remote_code) for model in models}
    if not options.allow_crimes:
        _require_one("architecture", {m: config_of.architectures for m, config_of in settings.items()})
        require_one_architecture(settings[models[0]], {str(m): settings[m] for m in models[1:]})
    if config.models:
        layers = {m: getattr(config_of, "num_hidden_layers", None) for m, config_of in settings.items()}
        _require_one("number of layers", layers)
    if not vocabulary_may_change(config, options):
        _require_one_vocabulary(models, checkpoints)
    merges = merges_of(planned(config, options, out), checkpoints)
    base = merges[0].base if merges else config.base_model
    _require_whole(merges, base, checkpoints[base], bool(config.slices or config.modules))
    require_sound(merges, checkpoints[base])


def check_files(
    config: RawPyTorchMergeConfig, options: MergeOptions, out: Path, intersection: bool | None
) -> tuple[list[Task], dict[str, tuple[int, ...]]]:
    """Refuse all that can be seen to fail before a merge of files.

    Args:
        config: the recipe.
        options: mergekit's.
        out: the folder that will be written.
        intersection: whether tensors that not all files have are left out, or (False) merged too; None
            where there must be none.

    Returns:
        mergekit's tasks, and name -> shape of every tensor that they must have written.

    Raises:
        FileNotFoundError, ValueError: naming the model, task, tensor or file.
    """
    paths = filter(None, (config.base_model, *(model.model for model in config.models)))
    files = {ModelReference(model={"path": path}): _file(path) for path in paths}
    require_other(out, (checkpoint.folder for checkpoint in files.values()))
    if intersection is None:
        _require_same_tensors(files)
    tasks = plan_flat_merge(config, str(out), intersection is False, bool(intersection), options)
    if config.merge_method == NAME:
        for checkpoint in files.values():
            require_floating(checkpoint)
        merges = merges_of(saved(tasks), files, partial=intersection is False)
        if intersection:
            merges = [merge for merge in merges if merge.has_coefficients]
            tasks = restricted(tasks, {merge.name for merge in merges})
        require_sound(merges, next(iter(files.values())))
    wanted = {name: shape for file in reversed(files.values()) for name, shape in file.shapes().items()}
    return tasks, {name: wanted[name] for name in (names_of(tasks) if intersection else wanted)}


def _require_same_tensors(files: Mapping[ModelReference, Checkpoint]) -> None:
    """Refuse files of other tensors where the command does not say what becomes of them."""
    names = {name for file in files.values() for name in file.files}
    for model, file in files.items():
        if lacking := sorted(names - {*file.files}):
            raise ValueError(
                f"`{model.model.path}` lacks {len(lacking)} tensor(s) that others hold: "
                f"{abbreviate(lacking)}. Add `--tensor-intersection`, to merge what all of them hold, or "
                "`--tensor-union`."
            )


def _file(path: str) -> Checkpoint:
    require_plain(path, ' "+@')
    checkpoint = Checkpoint.open(path)
    if Path(path).is_file():
        return checkpoint
    names = sorted({*checkpoint.files.values()})
    raise ValueError(
        f"`{path}` is a folder; `pytorch` merges single files, such as `{Path(path) / names[0]}`"
        + (f", and cannot merge a model in {len(names)} files. {BY_NAME}" if len(names) > 1 else ".")
    )


def require_sound(merges: list[Merge], base: Checkpoint) -> None:
    """Refuse a plan of which one tensor cannot be made, or a file with tensors that are not the base's.

    Raises:
        ValueError: naming the model, task, tensor or file.
    """
    _require_shapes(merges)
    names = {*base.files, *(merge.name for merge in merges)}
    for path in {merge.shared["tint"] for merge in merges} - {None}:
        _require_used(f"The tint `{path}`", tint_file(path), names)
    for path in {merge.shared["coefficients"] for merge in merges} - {None}:
        affected = [merge for merge in merges if merge.shared["coefficients"] == path]
        rows, tasks = coefficient_file(path).rows, coefficient_file(path).tasks
        given = {own["task"] for merge in affected for m, own in merge.own.items() if m != merge.base}
        if given < {*tasks}:
            raise ValueError(
                f"`{path}` was learned for the tasks {tasks} together; the recipe has models of "
                f"{sorted(given)} alone. To merge these, give every model a `weight` instead."
            )
        lacking = [m.name for m in affected if not m.has_coefficients]
        if lacking:
            raise ValueError(
                f"`{path}` has no coefficients for {len(lacking)} tensor(s): {lacking[:5]}. It was learned "
                f"for another model, or for its encoder alone. {BY_NAME}"
            )
        _require_used(f"`{path}`", rows, names)
    for merge in merges:
        _require_in_place(merge)
        for model in () if merge.copied or merge.tinted else set(merge.sources) - {merge.base}:
            own = merge.own[model]
            coefficient(merge.name, own["weight"], own["task"], merge.shared["coefficients"])


def _require_whole(
    merges: list[Merge], base: ModelReference, checkpoint: Checkpoint, of_some_layers: bool
) -> None:
    read = {merge.sources.get(base) for merge in merges}
    lost = [name for name in checkpoint.files if name not in read]
    lost = [name for name in lost if not (of_some_layers and LAYER.search(name))]
    if lost and (lost := when_loaded(checkpoint.folder).needed(lost)):
        raise ValueError(
            f"mergekit does not know {len(lost)} tensor(s) of the base `{base}`: {lost[:5]}. {BY_NAME}"
        )


def _require_shapes(merges: list[Merge]) -> None:
    lacking = [merge.name for merge in merges if merge.base not in merge.shapes]
    if lacking:
        raise ValueError(
            f"The base `{merges[0].base}` lacks {len(lacking)} tensor(s) that experts have: {lacking[:5]}. "
            f"{BY_NAME}"
        )
    for base, model in dict.fromkeys((merge.base, m) for merge in merges for m in merge.own):
        affected = [
            merge for merge in merges if merge.base == base and model in merge.own and not merge.copied
        ]
        wanted = {m.name: m.comparable(m.shapes[base]) for m in affected}
        shapes = {m.name: m.comparable(m.shapes[model]) for m in affected if model in m.shapes}
        advice = f"`tokenizer: {{source: base}}` aligns vocabularies. {BY_NAME}"
        require_same(shapes, wanted, f"The expert `{model}`", advice)
    for path in {merge.shared["tint"] for merge in merges} - {None}:
        affected = [merge for merge in merges if merge.tinted and merge.shared["tint"] == path]
        wanted = {m.name: m.comparable(m.shapes[m.base]) for m in affected}
        shapes = {m.name: m.comparable(tuple(tint_file(path)[m.name].shape)) for m in affected}
        require_same(shapes, wanted, f"The tint `{path}`", BY_NAME)


def _require_used(what: str, tensors: Mapping, names: set[str]) -> None:
    unused = [name for name in tensors if name not in names]
    if unused:
        raise ValueError(
            f"{what} has {len(unused)} tensor(s) that the base has not: {unused[:5]}. It was learned "
            f"for another model, or its tinted layer is not in the base. {BY_NAME}"
        )


def _require_in_place(merge: Merge) -> None:
    by_name = merge.shared["coefficients"] or merge.shared["tint"]
    moved = [name for name in merge.sources.values() if LAYER.findall(name) != LAYER.findall(merge.name)]
    if by_name and moved:
        raise ValueError(
            f"`{moved[0]}` becomes `{merge.name}`, but `{by_name}` goes by names. With slices that move "
            "layers, give every model a `weight` instead."
        )


def _require_one(what: str, of: Mapping[ModelReference, Any]) -> None:
    first, *others = of
    for model in others:
        if of[model] != of[first]:
            raise ValueError(
                f"The {what} of `{model}` differs from that of `{first}`: {of[model]} and {of[first]}. "
                f"No recipe merges such models. {BY_NAME}"
            )


def _require_one_vocabulary(models: list[ModelReference], checkpoints: Checkpoints) -> None:
    """Token by token where tokenizers differ in their files; a model without one has nothing to compare."""
    files = {m: [checkpoints[m].folder / name for name in TOKENIZERS] for m in models}
    content = {m: tuple(p.read_bytes() for p in paths if p.is_file()) for m, paths in files.items()}
    having = [model for model in models if content[model]]
    if len({content[model] for model in having}) < 2:
        return
    from transformers import AutoTokenizer

    vocabularies = {m: AutoTokenizer.from_pretrained(checkpoints[m].folder).get_vocab() for m in having}
    first, *others = having
    for model in others:
        differing = sorted(set(vocabularies[model].items()) ^ set(vocabularies[first].items()))
        if differing:
            raise ValueError(
                f"The vocabulary of `{model}` differs from that of `{first}`, as in {differing[:2]}. Align "
                "them with `tokenizer: {source: base}` (or `union`), or merge models that read text alike."
            )
