"""The recipes that a run says to mergekit: for the plugin, and for people without it."""

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from fusion_tinting.families.family import BY_ARCHITECTURE, BY_FILE
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.method import NAME
from fusion_tinting.mergekit.run_files import coefficient_file
from fusion_tinting.run.artifact import COEFFICIENTS
from fusion_tinting.run.files import write_text


class Commands(NamedTuple):
    """How a recipe is run: with the plugin, in plain mergekit, and the options of both."""

    ours: str
    plain: str
    options: str


COMMANDS = {
    BY_ARCHITECTURE: Commands("mergekit-tint yaml", "mergekit-yaml", ""),
    BY_FILE: Commands("mergekit-tint pytorch", "mergekit-pytorch", " --tensor-intersection"),
}
"""`BY_FILE` is for models that `yaml` refuses: heads of different shapes, or a base without head. The
tensors that all files have are merged; heads stay with their experts."""


def write(
    run_dir: Path,
    base: str,
    experts: Mapping[str, str],
    tasks: list[str],
    command: str | None,
    variance_epsilon: float | None = None,
) -> None:
    """Write `recipe.yml` for the plugin, and `recipe-task-arithmetic.yml` for plain mergekit.

    Both compute in float32 and write the models' own data type. With `BY_FILE` nothing is written where a
    checkpoint is in several files or names its tensors in another way: mergekit could not merge them.
    Plain mergekit cannot leave out heads that all models have, nor merge variances as we do.

    Args:
        run_dir: the run's folder.
        base: path or hub id; folders become absolute, for mergekit asks the hub about others.
        experts: task -> the same of its expert.
        tasks: in the order of the columns.
        command: of mergekit, that can merge these models; None where there is none.
        variance_epsilon: ε of batch norms whose variances are merged as log(σ² + ε), or None.
    """
    if command is None:
        return
    coefficients, models = run_dir.resolve() / COEFFICIENTS, [base, *(experts[task] for task in tasks)]
    rows, for_plugin = coefficient_file(str(coefficients)).rows, variance_epsilon is not None
    paths = {model: absolute(model) for model in models}
    checkpoints = {model: Checkpoint.open(model) for model in models}
    if command == BY_FILE:
        paths, for_plugin = _files(checkpoints, rows), for_plugin or _share_more(checkpoints.values(), rows)
    if paths is None:
        return
    use, at = COMMANDS[command], dict(zip(tasks, (paths[model] for model in models[1:]), strict=True))
    batch_norms = {} if variance_epsilon is None else {"variance_epsilon": variance_epsilon}
    plugin = {
        "merge_method": NAME,
        "base_model": paths[base],
        "models": [{"model": at[task], "parameters": {"task": task}} for task in tasks],
        "parameters": {"coefficients": str(coefficients), **batch_norms},
    }
    comment = "# The shared model. For one task add `tint: …/tints/<task>.safetensors` to `parameters`."
    _write(run_dir / "recipe.yml", plugin, f"{use.ours} recipe.yml OUT{use.options}\n{comment}")
    if for_plugin:
        return
    weights = [{"model": at[t], "parameters": {"weight": filters(coefficients, t)}} for t in tasks]
    plain = _task_arithmetic(paths[base], weights, _dtype(checkpoints.values(), rows))
    run = f"{use.plain} recipe-task-arithmetic.yml OUT{use.options}\n"
    _write(run_dir / "recipe-task-arithmetic.yml", plain, f"{run}# The shared model, no tints.")


def _task_arithmetic(base: str, models: list[dict], dtype: str) -> dict:
    return {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": models,
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "float32",
        "out_dtype": dtype,
    }


def command_of(run_dir: Path) -> str | None:
    """Return how the recipe in a run's folder is run; None where there is none."""
    path = run_dir / "recipe.yml"
    if not path.is_file():
        return None
    return path.read_text().splitlines()[1].strip("# ").replace(path.name, str(path))


def _files(checkpoints: Mapping[str, Checkpoint], rows: Iterable[str]) -> dict[str, str] | None:
    """Model -> its file; None unless every model is a single one that holds all that λ is for."""
    files = {}
    for model, checkpoint in checkpoints.items():
        names = set(checkpoint.files.values())
        if len(names) > 1 or not all(name in checkpoint.files for name in rows):
            return None
        files[model] = str((checkpoint.folder / names.pop()).absolute())
    return files


def _share_more(checkpoints: Iterable[Checkpoint], rows: Iterable[str]) -> bool:
    """Return whether all models have tensors of one name that λ is not for, such as heads."""
    floating = ({n for n, header in c.headers().items() if header.floating} for c in checkpoints)
    return not set.intersection(*floating) <= set(rows)


def filters(coefficients: Path, task: str) -> list[dict]:
    """Return a task's λ as mergekit's filters.

    They match parts of names and the first one counts, so that the longest names come first.

    Args:
        coefficients: path of the file.
        task: whose column.
    """
    file = coefficient_file(str(coefficients))
    column = file.tasks.index(task)
    names = sorted(file.rows, key=len, reverse=True)
    return [{"filter": name, "value": round(float(file.rows[name][column]), 7)} for name in names]


def absolute(model: str) -> str:
    """Local folders and files as absolute paths; anything else, such as a hub id, as it is.

    Args:
        model: as mergekit writes it, `model` or `model+lora`.
    """
    parts = model.split("+")
    return "+".join(str(Path(part).resolve()) if Path(part).exists() else part for part in parts)


def require_empty(out: Path, force: bool) -> None:
    """Refuse a folder with something in it."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
        raise ValueError(f"`{out}` is not empty. Choose another folder, or add `--force` to write into it.")


def require_other(out: Path, models: Iterable[Path]) -> None:
    """Refuse a folder that is one of the models': its weights would be removed first."""
    if out.resolve() in {model.resolve() for model in models}:
        raise ValueError(
            f"`{out}` is itself one of the models, which would be lost. Choose another folder."
        )


def _dtype(checkpoints: Iterable[Checkpoint], rows: Iterable[str]) -> str:
    """Return the data type that holds those of the models, as mergekit writes it."""
    dtypes = []
    for checkpoint in checkpoints:
        first = next((name for name in rows if name in checkpoint.files), None)
        dtypes += [checkpoint.tensor(first).dtype] if first is not None else []
    return str(reduce(torch.promote_types, dtypes or [torch.float32])).split(".")[1]


def _write(path: Path, recipe: dict, run: str) -> None:
    body = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, f"# Written by `mergekit-tint learn`. Run:\n#   {run}\n{body}")
