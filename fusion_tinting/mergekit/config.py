"""The configuration of `mergekit-tint learn`, in mergekit's style."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fusion_tinting.errors import unknown
from fusion_tinting.families import ENDINGS
from fusion_tinting.mergekit.documents import documents_of
from fusion_tinting.method.settings import Settings

AUTO = "auto"
FAMILIES = (AUTO, *dict.fromkeys(ENDINGS.values()))
EVERY_FAMILY_READS = ("path", "name", "split", "aside")


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    return name


def _settings(adapt: dict[str, Any]) -> dict[str, Any]:
    Settings.from_options(adapt)
    return adapt


def _texts(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and texts and all(t and isinstance(t, str) for t in texts)):
        raise ValueError(
            "must be a text or a list of texts (in quotes, where YAML would read `1` or `no` otherwise)"
        )
    return value


Name = Annotated[str, Field(min_length=1)]
Place = Annotated[str, AfterValidator(os.path.expanduser)]
Model = Annotated[Place, Field(min_length=1)]
Texts = Annotated[list[str] | str | None, BeforeValidator(_texts)]


class _Part(BaseModel):
    """A part of a configuration. Unknown keys are an error; a key without value is not there."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, content: Any) -> dict[str, Any]:
        if not isinstance(content, Mapping):
            raise ValueError(f"must be a mapping with keys such as `{next(iter(cls.model_fields))}`")
        return cls._prepared({key: value for key, value in content.items() if value is not None})

    @classmethod
    def _prepared(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Short forms written out."""
        return content


class Data(_Part):
    """Where a task's unlabeled inputs are.

    Attributes:
        path: JSON lines, CSV, Parquet or text file; or the id (or folder) of a data set.
        name: the data set's configuration, such as `sst2` of `nyu-mll/glue`.
        split: which part of the data set is read; `validation[:1000]` works as in `datasets`.
        aside: the share of the inputs that does not teach and is kept for the report. In a configuration
            it is a `split` that is a number.
        text, text_pair, image, label: columns; labels are for the report alone.
        target: column of answers, at every position of which a sequence-to-sequence model is taught by its
            expert's distribution of the next token; without one the answer's first token is taught.
        classes: names of the classes, in the order of the labels, where neither model nor data set knows
            them; a list, a text file with one a line, or `fusion_bench:<task>`, FusionBench's own.
        template: turns a class name, which stands for its `{}`, into a prompt; or several, to be averaged.
        max_length: tokens of an input; what is longer, or than the model can read, is cut.
    """

    path: Place = ""
    name: str | None = None
    split: str = "train"
    aside: Annotated[float, Field(gt=0, lt=1)] = 0.5
    text: str = "text"
    text_pair: str | None = None
    target: str | None = None
    image: str = "image"
    label: str | None = None
    classes: Texts = None
    template: Texts = None
    max_length: Annotated[int, Field(ge=2)] = 256

    @classmethod
    def _prepared(cls, content: dict[str, Any]) -> dict[str, Any]:
        return _written_out(content) or {}


class Expert(_Part):
    """One of the models to merge; `labels` is short for a label column of `data`."""

    model: Model
    task: Name
    data: Data
    labels: str | None = None

    @classmethod
    def _prepared(cls, content: dict[str, Any]) -> dict[str, Any]:
        data = _written_out(content.get("data"))
        if isinstance(data, Mapping) and content.get("labels"):
            data = {**data, "label": content["labels"]}
        return {**content, "data": data} if data else {k: v for k, v in content.items() if k != "data"}


class Config(_Part):
    """All of it; see `read`. `data` holds what is the same for all models."""

    base_model: Model
    family: Annotated[str, AfterValidator(_family)] = AUTO
    adapt: Annotated[dict[str, Any], AfterValidator(_settings)] = {}
    data: Data = Field(default_factory=Data)
    experts: Annotated[list[Expert], Field(min_length=1, alias="models")]

    @classmethod
    def _prepared(cls, content: dict[str, Any]) -> dict[str, Any]:
        models, defaults = content.get("models"), _written_out(content.get("data"))
        if isinstance(models, list) and isinstance(defaults, dict):
            content["models"] = [_with_defaults(model, defaults) for model in models]
        return content

    @property
    def by_task(self) -> dict[str, Expert]:
        """Task -> its expert."""
        return {expert.task: expert for expert in self.experts}

    def require_read(self, keys: Iterable[str], family: str) -> None:
        """Refuse keys of `data` that would do nothing.

        Args:
            keys: those that the family reads beside the ones that every family does.
            family: its name.

        Raises:
            ValueError: naming the key and a task.
        """
        for name, entry in Data.model_fields.items():
            given = [e.task for e in self.experts if getattr(e.data, name) != entry.default]
            if given and name not in (*EVERY_FAMILY_READS, *keys):
                raise ValueError(
                    f"`data.{name}` (task `{given[0]}`) has no effect on models of the family {family}; "
                    f"drop it. They read {', '.join((*EVERY_FAMILY_READS[:3], *keys))}."
                )


def read(path: Path) -> Config:
    """Read a configuration from a YAML file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, unknown or missing keys, a task named twice, or bad settings.
    """
    documents = documents_of(path, "configuration") or [None]
    if len(documents) > 1:
        raise ValueError(f"`{path}` holds {len(documents)} documents; a configuration is one.")
    try:
        config = Config.model_validate(documents[0])
    except ValidationError as error:
        raise _explained(path, **error.errors()[0]) from error
    tasks = [expert.task for expert in config.experts]
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"Every model needs a task of its own. Found the tasks {tasks}.")
    for place, expert in enumerate(config.experts):
        if not expert.data.path:
            raise ValueError(f"models[{place}].data of `{path}` lacks `path`.")
    return config


def _explained(path: Path, loc: tuple, type: str, msg: str, input: Any, **_: Any) -> ValueError:
    """Return the first of pydantic's errors with the key's place in the file."""
    *outer, key = loc or [""]
    where = " of ".join(filter(None, (_place(outer), f"`{path}`")))
    if type == "extra_forbidden":
        part = Data if "data" in outer else Expert if outer else Config
        names = (entry.alias or name for name, entry in part.model_fields.items())
        return unknown(f"key of {where}", key, names)
    if type in ("missing", "string_too_short", "too_short"):
        return ValueError(f"{where} lacks `{key}`.")
    if key == "aside":
        return ValueError(
            f"`split` of {where} must be a share above 0 and below 1 (of the inputs, kept aside for the "
            f"report), or the name of the part to read. Found {input!r}."
        )
    message = msg.removeprefix("Value error, ").removeprefix("Input should be ")
    if message[0].isupper() or message[0] == "`":  # a sentence of ours
        return ValueError(message)
    must = "" if message.startswith("must") else "must be "
    place = f"`{key}` of {where}" if isinstance(key, str) else f"{_place(loc)} of `{path}`"
    return ValueError(f"{place if loc else where} {must}{message}. Found {input!r}.")


def _place(keys: Iterable[str | int]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _with_defaults(model: Any, defaults: Mapping[str, Any]) -> Any:
    data = _written_out(model.get("data")) if isinstance(model, Mapping) else None
    return {**model, "data": {**defaults, **data}} if isinstance(data, dict) else model


def _written_out(data: Any) -> Any:
    """Return `data` written out: a text is a path, a `split` that is a number the share kept aside."""
    if isinstance(data, str) and data:
        return {"path": data}
    if isinstance(data, Mapping) and not isinstance(data.get("split", ""), str):
        return {"aside" if key == "split" else key: value for key, value in data.items()}
    return data if data else None
