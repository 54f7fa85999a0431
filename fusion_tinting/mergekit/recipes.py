"""The recipes that a run says to mergekit: for the plugin, and for people without it."""

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
import yaml

from fusion_tinting.files import write_text
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.method import NAME
from fusion_tinting.mergekit.run_files import coefficient_file


def write(run_dir: Path, base: str, experts: Mapping[str, str], tasks: list[str]) -> None:
    """Write `recipe.yml` for `mergekit-tint yaml`, and `recipe-task-arithmetic.yml` for plain mergekit.

    Both compute in float32 and write the models' own data type.

    Args:
        base, experts: paths or hub ids; folders become absolute, for mergekit asks the hub about others.
        tasks: in the order of the columns.
    """
    coefficients = run_dir.resolve() / "coefficients.safetensors"
    models = {"base_model": absolute(base)}
    own = {task: {"task": task} for task in tasks}
    plugin = {
        "merge_method": NAME,
        **models,
        "models": [{"model": absolute(experts[t]), "parameters": own[t]} for t in tasks],
        "parameters": {"coefficients": str(coefficients)},
    }
    weights = {task: {"weight": filters(coefficients, task)} for task in tasks}
    plain = {
        "merge_method": "task_arithmetic",
        **models,
        "models": [{"model": absolute(experts[t]), "parameters": weights[t]} for t in tasks],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "float32",
        "out_dtype": _dtype([base, *experts.values()], coefficients),
    }
    _write(
        run_dir / "recipe.yml",
        plugin,
        "mergekit-tint yaml recipe.yml OUT\n"
        "# The shared model. For one task add `tint: …/tints/<task>.safetensors` to `parameters`.",
    )
    _write(
        run_dir / "recipe-task-arithmetic.yml",
        plain,
        "mergekit-yaml recipe-task-arithmetic.yml OUT\n# The shared model in plain mergekit, no tints.",
    )


def filters(coefficients: Path, task: str) -> list[dict]:
    """A task's λ as mergekit's filters. They match parts of names and the first one counts, so that the
    longest names come first."""
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


def _dtype(models: Iterable[str], coefficients: Path) -> str:
    """The data type that holds those of the models, as mergekit writes it."""
    names, found = coefficient_file(str(coefficients)).rows, []
    for checkpoint in map(Checkpoint.open, models):
        first = next((name for name in names if name in checkpoint.files), None)
        found += [checkpoint.tensor(first).dtype] if first is not None else []
    return str(reduce(torch.promote_types, found or [torch.float32])).split(".")[1]


def _write(path: Path, recipe: dict, run: str) -> None:
    body = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, f"# Written by `mergekit-tint learn`. Run:\n#   {run}\n{body}")
