"""The configuration of `mergekit-tint learn`, in mergekit's style."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from fusion_tinting.errors import unknown
from fusion_tinting.families import ENDINGS
from fusion_tinting.method.settings import Settings

AUTO = "auto"
FAMILIES = (AUTO, *dict.fromkeys(ENDINGS.values()))


@dataclass(frozen=True)
class Data:
    """Where a task's unlabelled inputs are.

    Attributes:
        path: JSON lines, CSV, Parquet or text file; or the id (or folder) of a data set.
        name: the data set's configuration, such as `sst2` of `nyu-mll/glue`.
        split: which part of the data set is read; `validation[:1000]` works as in `datasets`.
        aside: the share of the inputs that does not teach and is kept for the report. In a configuration
            it is a `split` that is a number.
        text, text_pair, image, label: columns; labels are for the report alone.
        classes: names of the classes, in the order of the labels, where neither model nor data set knows
            them; a list, a text file with one a line, or `fusion_bench:<task>`, FusionBench's own.
        template: turns a class name, which stands for its `{}`, into a prompt; or several, to be averaged.
        max_length: tokens of an input.
    """

    path: str = ""
    name: str | None = None
    split: str = "train"
    aside: float = 0.5
    text: str = "text"
    text_pair: str | None = None
    image: str = "image"
    label: str | None = None
    classes: list[str] | str | None = None
    template: list[str] | str | None = None
    max_length: int = 256


EVERY_FAMILY_READS = ("path", "name", "split", "aside")


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

    def require_read(self, keys: Iterable[str], family: str) -> None:
        """Refuse keys of `data` that would do nothing.

        Args:
            keys: those that the family reads beside the ones that every family does.
        """
        for entry in fields(Data):
            given = [e.task for e in self.experts if getattr(e.data, entry.name) != entry.default]
            if given and entry.name not in (*EVERY_FAMILY_READS, *keys):
                raise ValueError(
                    f"`data.{entry.name}` (task `{given[0]}`) has no effect on models of the family "
                    f"{family}; drop it. They read {', '.join((*EVERY_FAMILY_READS[:3], *keys))}."
                )


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is no YAML: {error}") from error
    _known(f"key of `{path}`", found, ("base_model", "models", "family", "adapt", "data"))
    for key in ("base_model", "models"):
        if not found.get(key):
            raise ValueError(f"`{path}` lacks `{key}`.")
    family = found.get("family", "auto")
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    adapt = found.get("adapt") or {}
    _known("key of adapt", adapt, [entry.name for entry in fields(Settings)])
    Settings.from_options(adapt)
    defaults = _data(Data(), found.get("data") or {}, "data")
    if not isinstance(found["models"], list):
        raise ValueError(f"`models` of `{path}` must be a list. Found {found['models']!r}.")
    experts = [_expert(model, defaults, f"models[{i}]") for i, model in enumerate(found["models"])]
    tasks = [expert.task for expert in experts]
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"Every model needs a task of its own. Found the tasks {tasks}.")
    return Config(str(found["base_model"]), experts, family, dict(adapt))


def _expert(model: object, defaults: Data, where: str) -> Expert:
    _known(f"key of {where}", model, ("model", "task", "data", "labels"))
    for key in ("model", "task", "data"):
        if not model.get(key):
            raise ValueError(f"{where} lacks `{key}`.")
    given = model["data"] if isinstance(model["data"], Mapping) else {"path": model["data"]}
    data = _data(defaults, given, f"{where}.data")
    if model.get("labels"):
        data = replace(data, label=_of(str, model["labels"], f"{where}.labels"))
    if not data.path:
        raise ValueError(f"{where}.data lacks `path`.")
    return Expert(str(model["model"]), str(model["task"]), data)


def _data(defaults: Data, given: object, where: str) -> Data:
    names = [entry.name for entry in fields(Data) if entry.name != "aside"]
    _known(f"key of {where}", given, names)
    found = {key: value for key, value in given.items() if key != "split"}
    for key in ("path", "text", "image"):
        if key in found:
            _of(str, found[key], f"{where}.{key}")
    for key in ("name", "text_pair", "label"):
        if found.get(key) is not None:
            _of(str, found[key], f"{where}.{key}")
    for key in ("classes", "template"):
        if found.get(key) is not None:
            _texts(found[key], f"{where}.{key}")
    split = given.get("split", defaults.aside)
    if isinstance(split, str):
        found["split"] = split
    elif isinstance(split, (int, float)) and 0 < split < 1:
        found["aside"] = split
    else:
        raise ValueError(
            f"`split` of {where} must be a share above 0 and below 1 (of the inputs, kept aside for the "
            f"report), or the name of the part to read. Found {split!r}."
        )
    length = found.get("max_length", 2)
    if not isinstance(length, int) or length < 2:
        raise ValueError(f"`max_length` of {where} must be a whole number above 1. Found {length!r}.")
    return replace(defaults, **found)


def _of(kind: type, value: object, where: str) -> object:
    if not isinstance(value, kind):
        raise ValueError(f"{where} must be a {kind.__name__}. Found {value!r}.")
    return value


def _texts(value: object, where: str) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(t and isinstance(t, str) for t in texts):
        raise ValueError(
            f"{where} must be a text or a list of texts (in quotes, where YAML would read `1` or `no` "
            f"otherwise). Found {value!r}."
        )


def _known(kind: str, given: object, names: Iterable[str]) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"Expected a mapping, of each {kind}, among {', '.join(names)}. Found {given!r}.")
    for key in given:
        if key not in names:
            raise unknown(kind, key, names)
