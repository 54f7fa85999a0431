"""What a recipe says: every key known, every value sound, every path absolute."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
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
from fusion_tinting.mergekit.method import NAME
from fusion_tinting.mergekit.recipes import absolute
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


def read(path: Path, kind: type[BaseModel] = MergeConfiguration) -> tuple[BaseModel, str]:
    """Read a recipe, with its folders and files as absolute paths; also return its text as it stands.

    Args:
        path: of the recipe.
        kind: what mergekit makes of it.

    Raises:
        FileNotFoundError: no such recipe, or a file that it names is not there.
        ValueError: no YAML, not a recipe that mergekit can read, an unknown key, or a junk file.
    """
    documents = _documents(path)
    if len(documents) > 1:
        raise ValueError(f"`{path}` holds {len(documents)} recipes: use `mergekit-tint multi`.")
    recipe = _with_absolute_paths(documents[0], TOKENIZERS)
    return _checked(recipe, kind), path.read_text(encoding="utf-8")


def read_several(path: Path) -> str:
    """Read a file of recipes, checked like `read`; return its text with absolute paths."""
    documents = _documents(path)
    names = [recipe.get("name") for recipe in documents]
    documents = [_with_absolute_paths(recipe, (*TOKENIZERS, *names)) for recipe in documents]
    for recipe in documents:
        _checked({key: value for key, value in recipe.items() if key != "name"}, MergeConfiguration)
    return yaml.safe_dump_all(documents, sort_keys=False)


def _documents(path: Path) -> list[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe `{path}`.")
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is no YAML: {error}") from error
    if not documents or not all(isinstance(recipe, dict) for recipe in documents):
        raise ValueError(f"`{path}` must hold a mapping with `merge_method`, `models` and more.")
    return documents


def _checked(recipe: dict, kind: type[BaseModel]) -> BaseModel:
    config = kind.model_validate(recipe)
    if config.merge_method == NAME:
        _check_keys("the recipe", recipe, kind)
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


def _check_value(what: str, name: str, value: object) -> None:
    if name in NUMBERS:
        try:
            fine = math.isfinite(float(value))
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


def _with_absolute_paths(part: Any, fixed: tuple) -> Any:
    """Return a recipe with every model and file as an absolute path, but for names that are `fixed`."""
    if isinstance(part, list):
        return [_with_absolute_paths(item, fixed) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: absolute(value)
        if isinstance(value, str) and key in (*REFERENCES, *FILES) and value not in fixed
        else _with_absolute_paths(value, fixed)
        for key, value in part.items()
    }
