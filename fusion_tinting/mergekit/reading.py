"""What a recipe says: every key known, every value sound, every path absolute."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from mergekit.config import (
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)
from pydantic import BaseModel

from fusion_tinting.errors import unknown
from fusion_tinting.mergekit.documents import documents_of
from fusion_tinting.mergekit.folders import absolute, now_at, require_plain, require_used
from fusion_tinting.mergekit.method import NAME
from fusion_tinting.mergekit.run_files import coefficient_file, tint_file

PER_MODEL = ("weight", "task")
NUMBERS = ("weight", "variance_epsilon")
FILES = {"coefficients": coefficient_file, "tint": tint_file}
PARTS = {
    "models": InputModelDefinition,
    "slices": OutputSliceDefinition,
    "sources": InputSliceDefinition,
    "modules": OutputModuleDefinition,
}
"""Key -> what its entries are."""
REFERENCES = ("model", "base_model", "tokenizer_source", "source", "path", "lora")
"""Keys of a recipe that name models."""
TOKENIZERS = ("base", "union")
"""What stands in place of a model where a tokenizer is named."""


def read(
    path: Path,
    kind: type[BaseModel] = MergeConfiguration,
    moves: Mapping[str, str] = MappingProxyType({}),
) -> tuple[BaseModel, str]:
    """Read a recipe, with its folders and files as absolute paths; also return its text as it stands.

    Args:
        path: of the recipe.
        kind: what mergekit makes of it.
        moves: old path -> new path, of what is elsewhere than the recipe says.

    Raises:
        FileNotFoundError: no such recipe, or a file that it names is not there.
        ValueError: no YAML, not a recipe that mergekit can read, an unknown key, or a junk file.
    """
    documents = _documents(path)
    if len(documents) > 1:
        raise ValueError(f"`{path}` holds {len(documents)} recipes: use `mergekit-tint multi`.")
    recipe = _moved(documents, moves, TOKENIZERS)[0]
    return _checked(recipe, kind), path.read_text(encoding="utf-8")


def read_several(path: Path, moves: Mapping[str, str]) -> str:
    """Read a file of recipes, checked like `read`; return its text with absolute paths."""
    documents = _documents(path)
    names = [recipe.get("name") for recipe in documents]
    documents = _moved(documents, moves, (*TOKENIZERS, *names))
    for recipe in documents:
        _checked({key: value for key, value in recipe.items() if key != "name"}, MergeConfiguration)
    return yaml.safe_dump_all(documents, sort_keys=False)


def _documents(path: Path) -> list[dict]:
    documents = documents_of(path, "recipe")
    if not documents or not all(isinstance(recipe, dict) for recipe in documents):
        raise ValueError(f"`{path}` must hold a mapping with `merge_method`, `models` and more.")
    return documents


def _checked(recipe: dict, kind: type[BaseModel]) -> BaseModel:
    config = kind.model_validate(recipe)
    if config.merge_method == NAME:
        _check_keys("the recipe", recipe, kind)
        _check_models(recipe, recipe.get("base_model"))
        if not config.base_model and not getattr(config, "slices", None):
            raise ValueError(f"`merge_method: {NAME}` needs a `base_model`.")
    return config


def _check_keys(where: str, given: Mapping, kind: type[BaseModel]) -> None:
    """Refuse unknown keys, which mergekit ignores: a mistyped name must not pass for a default."""
    for key in given:
        if key not in kind.model_fields:
            raise unknown(f"key of {where}", key, kind.model_fields)
    shared = () if "model" in kind.model_fields else (*FILES, "variance_epsilon")
    for name, value in (given.get("parameters") or {}).items():
        if name not in (*shared, *PER_MODEL):
            raise unknown(f"parameter of {where}", name, (*shared, *PER_MODEL))
        for leaf in _leaves(value):
            _check_value(f"`{name}` of {where}", name, leaf)
    for key, part in PARTS.items():
        items = given.get(key) or ()
        places = items.items() if isinstance(items, Mapping) else enumerate(items)
        for place, item in places:
            _check_keys(f"{key}[{place}]", item, part)


def _check_models(part: Mapping, base: object) -> None:
    """Refuse a list in which a model or a task is twice, or the base with parameters: one would be lost."""
    for items in (part.get(key) or () for key in PARTS):
        for item in items.values() if isinstance(items, Mapping) else items:
            _check_models(item, part.get("base_model") or base)
    models = [item for key in ("models", "sources") for item in part.get(key) or ()]
    own = [item.get("parameters") or {} for item in models]
    for what, names in (("model", [i["model"] for i in models]), ("task", [p.get("task") for p in own])):
        twice = [name for name in names if isinstance(name, str) and names.count(name) > 1]
        if twice and not all("layer_range" in item for item in models):
            raise ValueError(f"The {what} `{twice[0]}` is there twice: its first entry would be ignored.")
    for item, parameters in zip(models, own, strict=True):
        if parameters and item["model"] == base:
            raise ValueError(
                f"`{base}` is the base: {', '.join(map('`{}`'.format, parameters))} of it would do nothing."
            )


def _check_value(what: str, name: str, value: object) -> None:
    if name in NUMBERS:
        try:
            fine = math.isfinite(float(value)) and not isinstance(value, bool)
        except (TypeError, ValueError):
            fine = False
    else:
        fine = isinstance(value, str)
    if not fine:
        wanted = "a finite number" if name in NUMBERS else "a text (in quotes where it looks like a number)"
        raise ValueError(f"{what} must be {wanted}. Found {value!r}.")
    if name in FILES:
        FILES[name](value)


def _leaves(setting: object) -> Iterator:
    """Yield the values of a gradient, of filters or of both."""
    if isinstance(setting, list):
        for item in setting:
            yield from _leaves(item)
    elif isinstance(setting, dict):
        yield from _leaves(setting.get("value"))
    else:
        yield setting


def _moved(documents: list[dict], moves: Mapping[str, str], fixed: tuple) -> list[dict]:
    """Return recipes with every model and file as an absolute path where it is now."""
    found: list[str] = []

    def place(path: str) -> str:
        found.append(path)
        require_plain(now_at(path, moves), "+@")
        return absolute("+".join(now_at(part, moves) for part in path.split("+")))

    documents = [_with_paths(recipe, place, fixed) for recipe in documents]
    require_used(moves, found)
    return documents


def _with_paths(part: Any, place: Callable[[str], str], fixed: tuple) -> Any:
    """Return a recipe with `place` of every model and file, but for names that are `fixed`."""
    if isinstance(part, list):
        return [_with_paths(item, place, fixed) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: place(value)
        if isinstance(value, str) and key in (*REFERENCES, *FILES) and value not in fixed
        else _with_paths(value, place, fixed)
        for key, value in part.items()
    }
