"""Recipes: what a run says to mergekit, and what is wrong with a recipe before anything is written."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration

from fusion_tinting.errors import unknown
from fusion_tinting.mergekit.checkpoints import Checkpoint, require_same
from fusion_tinting.mergekit.method import NAME, coefficient_file, tint_file

PER_MODEL = ("weight", "task")
SHARED = ("coefficients", "tint")
CARD_HEAD = "# Written by `mergekit-tint learn`. "


def write(run_dir: Path, base: str, experts: Mapping[str, str], tasks: list[str]) -> None:
    """Write `recipe.yml` for `mergekit-tint yaml`, and `recipe-task-arithmetic.yml` for plain mergekit.

    Args:
        base, experts: paths or hub ids; folders become absolute, for mergekit asks the hub about others.
        tasks: in the order of the columns.
    """
    coefficients = run_dir.resolve() / "coefficients.safetensors"
    plugin = {
        "merge_method": NAME,
        "base_model": absolute(base),
        "models": [{"model": absolute(experts[t]), "parameters": {"task": t}} for t in tasks],
        "parameters": {"coefficients": str(coefficients)},
        "dtype": "float32",
    }
    weights = {task: {"weight": filters(coefficients, task)} for task in tasks}
    plain = {
        "merge_method": "task_arithmetic",
        "base_model": absolute(base),
        "models": [{"model": absolute(experts[t]), "parameters": weights[t]} for t in tasks],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "float32",
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
    """A local folder as an absolute path; anything else, such as a hub id, as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def read(path: Path) -> dict:
    """A recipe, with its folders and files as absolute paths.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, an unknown key, or not a recipe that mergekit can read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe `{path}`.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"`{path}` must hold a mapping with `merge_method`, `models` and more.")
    for key in found:
        if key not in MergeConfiguration.model_fields:
            raise unknown("key of the recipe", key, MergeConfiguration.model_fields)
    if found.get("merge_method") == NAME:
        _check_parameters("parameters", found.get("parameters"), SHARED + PER_MODEL)
        for place, model in enumerate(found.get("models") or []):
            for key in model:
                if key not in ("model", "parameters"):
                    raise unknown(f"key of models[{place}]", key, ("model", "parameters"))
            _check_parameters(f"models[{place}].parameters", model.get("parameters"), PER_MODEL)
    return _with_absolute_paths(found)


def check(recipe: Mapping, out: Path, force: bool) -> None:
    """Everything that can be seen to fail before a merge starts.

    Raises:
        FileNotFoundError, ValueError: naming the model, task, tensor or file.
    """
    require_empty(out, force)
    if recipe.get("merge_method") != NAME:
        return
    if not recipe.get("base_model"):
        raise ValueError(f"`merge_method: {NAME}` needs a `base_model`.")
    base = Checkpoint.open(recipe["base_model"]).shapes()
    shared = recipe.get("parameters") or {}
    for model in _experts(recipe):
        shapes = Checkpoint.open(model["model"]).shapes()
        advice = (
            "Experts of `mergekit-tint yaml` must have the base's tensors; `mergekit-tint variants` writes "
            "classifiers, whose heads differ."
        )
        require_same(shapes, base, f"The expert `{model['model']}`", advice)
    if path := shared.get("tint"):
        extra = [name for name in tint_file(path) if name not in base]
        if extra:
            raise ValueError(
                f"The tint `{path}` has tensors that the base has not: {extra[:5]}. "
                "`mergekit-tint variants` writes them beside the shared model."
            )
    if path := shared.get("coefficients"):
        _check_coefficients(recipe, coefficient_file(path), base)


def require_empty(out: Path, force: bool) -> None:
    """Refuse a folder with something in it."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
        raise ValueError(f"`{out}` is not empty. Choose another folder, or add `--force` to write into it.")


def check_output(recipe: Mapping, out: Path) -> None:
    """Compare what was written with the base's tensors.

    Raises:
        ValueError: naming tensors that are missing or of another shape.
    """
    if recipe.get("merge_method") == NAME:
        wanted = Checkpoint.open(recipe["base_model"]).shapes()
        advice = (
            "mergekit does not write this architecture whole. Use `mergekit-tint variants RUN OUT`, which "
            "goes by the checkpoint's own names."
        )
        require_same(Checkpoint.open(str(out)).shapes(), wanted, f"`{out}` is not complete", advice)


def _check_coefficients(recipe: Mapping, file, base: Mapping) -> None:
    for model in _experts(recipe):
        task = (model.get("parameters") or {}).get("task")
        file.value(next(iter(file.rows)), task)  # a task that is missing or unknown is named
    tinted = set(tint_file(recipe["parameters"]["tint"])) if recipe["parameters"].get("tint") else set()
    lacking = [name for name in base if name not in file.rows and name not in tinted]
    unused = [name for name in file.rows if name not in base]
    if lacking or unused:
        parts = [f"no row for {len(lacking)} tensor(s) of the base: {lacking[:5]}"] * bool(lacking)
        parts += [f"{len(unused)} row(s) for tensors that it has not: {unused[:5]}"] * bool(unused)
        raise ValueError(
            f"`{file.path}` has {' and '.join(parts)}. It was learned for another model, or for its "
            "encoder alone: then use `mergekit-tint variants RUN OUT`."
        )


def _experts(recipe: Mapping) -> Iterator[Mapping]:
    models = recipe.get("models")
    if not models:
        raise ValueError(f"`merge_method: {NAME}` needs `models`, not `slices` or `modules`.")
    return (model for model in models if model["model"] != recipe["base_model"])


def _check_parameters(where: str, given: Mapping | None, known: tuple[str, ...]) -> None:
    for name in given or {}:
        if name not in known:
            raise unknown(f"key of {where}", name, known)


def _with_absolute_paths(recipe: dict) -> dict:
    found = dict(recipe)
    if isinstance(found.get("base_model"), str):
        found["base_model"] = absolute(found["base_model"])
    if isinstance(found.get("models"), list):
        found["models"] = [
            {**model, "model": absolute(model["model"])} if isinstance(model.get("model"), str) else model
            for model in found["models"]
        ]
    return found


def _write(path: Path, recipe: dict, run: str) -> None:
    from fusion_tinting.files import write_text

    body = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, f"{CARD_HEAD}Run:\n#   {run}\n{body}")
