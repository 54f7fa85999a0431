"""The configuration of `mergekit-tint learn`, in mergekit's style."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from fusion_tinting.errors import unknown
from fusion_tinting.settings import Settings

FAMILIES = ("auto", "sequence_classification", "causal_lm")


@dataclass(frozen=True)
class Data:
    """Where a task's unlabelled inputs are.

    Attributes:
        path: JSON lines, CSV, Parquet or text file; or the id of a data set of the hub.
        name: the data set's configuration, such as `sst2` of `nyu-mll/glue`.
        split: a number is the share that does not teach and is kept for the report; a word names the data
            set's split to read (half of which is then kept aside).
        text, text_pair, label: columns; labels are for the report alone.
        max_length: tokens of an input.
    """

    path: str = ""
    name: str | None = None
    split: float | str = 0.5
    text: str = "text"
    text_pair: str | None = None
    label: str | None = None
    max_length: int = 256

    @property
    def aside(self) -> float:
        """The share kept for the report."""
        return 0.5 if isinstance(self.split, str) else self.split


@dataclass(frozen=True)
class Expert:
    """One of the models to merge."""

    model: str
    task: str
    data: Data


@dataclass(frozen=True)
class Config:
    """All of it; see `read`."""

    base_model: str
    experts: list[Expert]
    family: str = "auto"
    adapt: dict = field(default_factory=dict)

    @property
    def by_task(self) -> dict[str, Expert]:
        return {expert.task: expert for expert in self.experts}


def read(path: Path) -> Config:
    """A configuration from a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, unknown or missing keys, a task named twice, or bad settings.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration `{path}`.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is no YAML: {error}") from error
    _known("key", found, ("base_model", "models", "family", "adapt", "data"))
    for key in ("base_model", "models"):
        if not found.get(key):
            raise ValueError(f"`{path}` lacks `{key}`.")
    family = found.get("family", "auto")
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    adapt = found.get("adapt") or {}
    Settings.from_options(adapt)
    defaults = _data(Data(), found.get("data") or {}, "data")
    experts = [_expert(model, defaults, f"models[{i}]") for i, model in enumerate(found["models"])]
    tasks = [expert.task for expert in experts]
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"Every model needs a task of its own. Found {tasks}.")
    return Config(str(found["base_model"]), experts, family, dict(adapt))


def _expert(model: Mapping, defaults: Data, where: str) -> Expert:
    _known(f"key of {where}", model, ("model", "task", "data", "labels"))
    for key in ("model", "task", "data"):
        if not model.get(key):
            raise ValueError(f"{where} lacks `{key}`.")
    given = model["data"] if isinstance(model["data"], Mapping) else {"path": model["data"]}
    data = _data(defaults, given, f"{where}.data")
    if model.get("labels"):
        data = replace(data, label=model["labels"])
    if not data.path:
        raise ValueError(f"{where}.data lacks `path`.")
    return Expert(str(model["model"]), str(model["task"]), data)


def _data(defaults: Data, given: Mapping, where: str) -> Data:
    _known(f"key of {where}", given, [f.name for f in fields(Data)])
    data = replace(defaults, **given)
    if not isinstance(data.split, str) and not 0 < data.split < 1:
        raise ValueError(f"`split` of {where} must be a share above 0 and below 1. Found {data.split}.")
    if not isinstance(data.max_length, int) or data.max_length < 2:
        raise ValueError(
            f"`max_length` of {where} must be a whole number above 1. Found {data.max_length}."
        )
    return data


def _known(kind: str, given: object, names) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"Expected a mapping where the {kind}s are. Found {given!r}.")
    for key in given:
        if key not in names:
            raise unknown(kind, key, names)
