"""The recipes that a run says to mergekit: for the plugin, and for people without it."""

import shlex
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from functools import reduce
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig

from fusion_tinting.families.family import BY_ARCHITECTURE, BY_FILE
from fusion_tinting.mergekit import preflight
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.folders import absolute
from fusion_tinting.mergekit.method import NAME, register
from fusion_tinting.mergekit.run_files import coefficient_file
from fusion_tinting.run.artifact import COEFFICIENTS
from fusion_tinting.run.files import write_text

RECIPE, PLAIN = "recipe.yml", "recipe-task-arithmetic.yml"


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
) -> str | None:
    """Write `recipe.yml` for the plugin, and `recipe-task-arithmetic.yml` for plain mergekit.

    Both compute in float32 and write the models' own data type. Nothing is written that its command would
    refuse, as with `BY_FILE` where a checkpoint is in several files or names its tensors in another way.
    Plain mergekit cannot leave out heads that all models have, nor merge variances as we do.

    Args:
        run_dir: the run's folder.
        base: path or hub id; folders become absolute, for mergekit asks the hub about others.
        experts: task -> the same of its expert.
        tasks: in the order of the columns.
        command: of mergekit, that can merge these models; None where there is none.
        variance_epsilon: ε of batch norms whose variances are merged as log(σ² + ε), or None.

    Returns:
        Why there is no recipe; None where there is one.
    """
    for name in (RECIPE, PLAIN):
        (run_dir / name).unlink(missing_ok=True)
    if command is None:
        return "mergekit has no command that merges such models."
    try:
        _write_both(run_dir, base, {task: experts[task] for task in tasks}, command, variance_epsilon)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        return " ".join(str(error).split())
    return None


def _write_both(
    run_dir: Path, base: str, experts: Mapping[str, str], command: str, variance_epsilon: float | None
) -> None:
    coefficients, for_plugin = run_dir.resolve() / COEFFICIENTS, variance_epsilon is not None
    rows = coefficient_file(str(coefficients)).rows
    paths = {model: absolute(model) for model in (base, *experts.values())}
    checkpoints = {model: Checkpoint.open(model) for model in paths}
    if command == BY_FILE:
        paths, for_plugin = _files(checkpoints, rows), for_plugin or _share_more(checkpoints.values(), rows)
    use, at = COMMANDS[command], {task: paths[model] for task, model in experts.items()}
    batch_norms = {} if variance_epsilon is None else {"variance_epsilon": variance_epsilon}
    plugin = {
        "merge_method": NAME,
        "base_model": paths[base],
        "models": [{"model": path, "parameters": {"task": task}} for task, path in at.items()],
        "parameters": {"coefficients": str(coefficients), **batch_norms},
    }
    _require_fine(plugin, command, run_dir / "OUT")
    comment = "# The shared model. For one task add `tint: …/tints/<task>.safetensors` to `parameters`."
    _write(run_dir / RECIPE, plugin, f"{use.ours} {RECIPE} OUT{use.options}\n{comment}")
    if for_plugin:
        return
    weights = [{"model": at[t], "parameters": {"weight": filters(coefficients, t)}} for t in experts]
    plain = _task_arithmetic(paths[base], weights, _dtype(checkpoints.values(), rows))
    run = f"{use.plain} {PLAIN} OUT{use.options}\n"
    _write(run_dir / PLAIN, plain, f"{run}# The shared model, no tints.")


def _require_fine(recipe: dict, command: str, out: Path) -> None:
    """Refuse a recipe as its command would."""
    register()
    with redirect_stderr(StringIO()):  # mergekit's bars
        if command == BY_ARCHITECTURE:
            preflight.check(MergeConfiguration.model_validate(recipe), MergeOptions(), out)
        else:
            config = RawPyTorchMergeConfig.model_validate(recipe)
            preflight.check_files(config, MergeOptions(), out, intersection=True)


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
    path = run_dir / RECIPE
    if not path.is_file():
        return None
    line = path.read_text(encoding="utf-8").splitlines()[1].strip("# ")
    return line.replace(RECIPE, shlex.quote(str(path)))


def _files(checkpoints: Mapping[str, Checkpoint], rows: Iterable[str]) -> dict[str, str]:
    """Return model -> its file.

    Raises:
        ValueError: one in several files, or whose tensors have other names than λ.
    """
    files = {}
    for model, checkpoint in checkpoints.items():
        names = set(checkpoint.files.values())
        if len(names) > 1:
            raise ValueError(f"`{model}` is in {len(names)} files; mergekit-pytorch merges single ones.")
        if other := [name for name in rows if name not in checkpoint.files]:
            raise ValueError(
                f"mergekit-pytorch goes by the names of tensors, and `{model}` has none that is called "
                f"`{other[0]}`."
            )
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
