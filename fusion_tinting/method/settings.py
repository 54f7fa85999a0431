"""The settings of an adaptation; the defaults are Model Tinting++ as published."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from fusion_tinting.errors import unknown
from fusion_tinting.method.coefficients import GRANULARITIES
from fusion_tinting.method.objectives import OBJECTIVES, OF_CLASSES, Objective, hard, resolve_objective
from fusion_tinting.method.sampling import Sampler, every_sample, resolve_sampler
from fusion_tinting.method.task_vectors import DTYPES, PRETRAININGS
from fusion_tinting.run.storage import STORAGES
from fusion_tinting.run.top_predictions import ARG_MAX, TOP

UPDATES = ("sequential", "joint")


@dataclass(frozen=True)
class Settings:
    """What an adaptation does; arXiv 2412.19098 unless another source is named.

    Attributes:
        layer: the layer to tint; see `tints.resolve_layer`. `auto` finds one (`layer_choice`); None trains
            coefficients alone.
        sampler: `all`, `confidence_difference`, `top_confidence[:share]`, or a callable.
        objective: `hard`, `soft`, `entropy`, `l1`, or a callable; or task -> one of these.
        update: `sequential` takes an optimiser step after each task (the paper: K steps an
            iteration); `joint` sums the tasks' gradients and takes one step (AdaMerging's habit).
        steps: iterations; each visits every task once.
        batch_size: unlabelled samples per task and iteration.
        lr: Adam's learning rate, β = (0.9, 0.999), no weight decay.
        lr_coefficients: another one for λ; 0 freezes λ. AdaMerging uses 1e-3.
        lr_tints: another one for the tints; 0 freezes them.
        average: whether the mean of λ and of the tints over the last quarter of the iterations is what is
            kept, and not the last ones; see `averaging`.
        init: the value at which every λ starts (0.3; 0.1 for 14 and 20 tasks in some released runs).
        granularity: `layer`, `block` or `task`; see `Coefficients`.
        clamp: whether λ is kept in [0, 1].
        task_vectors: `dtype` (`fp32`, or `fp16` for half the memory) and `storage` (`memory`; `mmap`, a
            file that is read piece by piece; `sharded` over processes), and whether experts of `different`
            `pretraining` are allowed; see `TaskVectors.from_models`.
        seed: of batches and task order.

    Raises:
        ValueError: an unknown option, or a number out of range, named.
    """

    layer: str | None = "head"
    sampler: str | Sampler = "confidence_difference"
    objective: str | Objective | Mapping[str, str | Objective] = "hard"
    update: str = "sequential"
    steps: int = 500
    batch_size: int = 32
    lr: float = 1e-2
    lr_coefficients: float | None = None
    lr_tints: float | None = None
    average: bool = False
    init: float = 0.3
    granularity: str = "layer"
    clamp: bool = True
    task_vectors: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        if self.layer is not None and not isinstance(self.layer, str):
            raise ValueError(f"`layer` must be a layer's name or None. Found {self.layer!r}.")
        if self.layer is None and self.lr_tints:
            raise ValueError(f"`lr_tints={self.lr_tints}` has no effect with `layer=None`; drop one.")
        if self.lr_coefficients == 0 and (self.layer is None or self.lr_tints == 0):
            raise ValueError("Nothing would be trained: both λ and the tints are frozen.")
        resolve_sampler(self.sampler)
        for objective in self.objectives:
            resolve_objective(objective)
        object.__setattr__(self, "task_vectors", _task_vectors(self.task_vectors))
        for name, choices in (("update", UPDATES), ("granularity", GRANULARITIES)):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        for name in ("clamp", "average"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be true or false. Found {getattr(self, name)!r}.")
        for name, least in (("steps", 0), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be a whole number, at least {least}. Found {value!r}.")
        for name in ("lr", "lr_coefficients", "lr_tints", "init"):
            value = getattr(self, name)
            given = value is not None or name in ("lr", "init")
            if given and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                hint = " YAML takes a number without a point for text: write 1.0e-3, not 1e-3."
                text = hint if isinstance(value, str) else ""
                raise ValueError(f"`{name}` must be a number, at least 0. Found {value!r}.{text}")

    @classmethod
    def from_options(cls, options: dict) -> "Settings":
        """Settings from keyword arguments or a configuration; unknown names are an error."""
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                raise unknown("setting", name, names)
        return cls(**options)

    @property
    def objectives(self) -> list[str | Objective]:
        """All that are in use."""
        several = isinstance(self.objective, Mapping)
        return list(self.objective.values()) if several else [self.objective]

    def objective_of(self, task: str) -> Objective:
        """The objective of a task.

        Raises:
            ValueError: `objective` names tasks, but not this one.
        """
        if not isinstance(self.objective, Mapping):
            return resolve_objective(self.objective)
        if task not in self.objective:
            raise ValueError(f"`objective` names none for the task `{task}`. Found {list(self.objective)}.")
        return resolve_objective(self.objective[task])

    def kept_of(self, task: str) -> int | None:
        """How much of a class distribution is read of the task's expert; see `top_predictions.kept`."""
        objective = self.objective_of(task)
        if objective is hard and resolve_sampler(self.sampler) is every_sample:
            return ARG_MAX
        return TOP if objective in map(OBJECTIVES.get, OF_CLASSES) else None

    def to_json(self) -> dict:
        """The settings, with callables by their names and the hash of their code."""
        return {field.name: _named(getattr(self, field.name)) for field in fields(self)}


def _task_vectors(given: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise ValueError(f"`task_vectors` must map settings to values, as dtype: fp16. Found {given!r}.")
    choices = {"dtype": DTYPES, "storage": STORAGES, "pretraining": PRETRAININGS}
    found = {"dtype": "fp32", "storage": "memory", "pretraining": "same", **given}
    for name, value in found.items():
        if name not in choices:
            raise unknown("setting of task_vectors", name, choices)
        if value not in choices[name]:
            raise unknown(f"task_vectors.{name}", value, choices[name])
    return found


def _named(value):
    """A function by its name; two of one name, such as lambdas, differ by code and what it closes over."""
    if isinstance(value, Mapping):
        return {key: _named(one) for key, one in value.items()}
    if not callable(value):
        return value
    function = value
    code = getattr(function, "__code__", None)
    closed = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    content = (code.co_code, code.co_consts, closed) if code else function
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:8]
    return f"{getattr(function, '__qualname__', type(function).__name__)} {digest}"
