"""The settings of an adaptation; the defaults are Model Tinting++ as published."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_tinting.errors import unknown
from fusion_tinting.method.coefficients import GRANULARITIES, Init
from fusion_tinting.method.named import name_of
from fusion_tinting.method.objectives import OBJECTIVES, Loss, Objective, Reads, resolve_objective
from fusion_tinting.method.sampling import SAMPLERS, Sampler, every_sample, resolve_sampler
from fusion_tinting.method.task_vectors import DTYPES, GRADIENTS, PRETRAININGS

UPDATES = ("sequential", "joint")
STORAGES = ("memory", "host", "stream", "mmap")
"""Places for task vectors; `fusion_tinting.run.storage` has them."""
READS = ", reads "
"""Between the name of a user's objective and what it reads, where that is not everything."""


@dataclass(frozen=True)
class Settings:
    """What an adaptation does; arXiv 2412.19098 unless another source is named.

    Attributes:
        layer: the layer to tint; see `tints.resolve_layer`. `auto` chooses one (`run.layer_choice`); None
            trains coefficients alone.
        sampler: `all`, `confidence_difference`, `top_confidence[:share]`, or a callable. The named ones
            choose among class distributions; of a task of labels or values every sample is kept.
        objective: `hard`, `soft`, `entropy`, `l1`, `cosine`, `sigmoid`, or a callable; or task -> one of
            these. A run with a callable is continued only if it has a name: see `Named`. `soft` reads the
            top of distributions over many classes: see `run.top_predictions`.
        update: `sequential` takes an optimizer step after each task (the paper: K steps an
            iteration); `joint` sums the tasks' gradients and takes one step (AdaMerging's habit).
        steps: iterations; each visits every task once.
        batch_size: unlabeled samples per task and iteration.
        lr: Adam's learning rate, β = (0.9, 0.999), no weight decay.
        lr_coefficients: another one for λ; 0 freezes λ. AdaMerging uses 1e-3.
        lr_tints: another one for the tints; 0 freezes them.
        gradient_checkpointing: whether blocks are computed again in the backward pass, so that their
            activations are not kept: less memory, a third more time; see `recomputation`.
        average: whether the mean of λ and of the tints over the last quarter of the iterations is what is
            kept, and not the last ones; see `averaging`.
        init: where λ starts: one value (0.3; 0.1 for 14 and 20 tasks in some released runs); task -> its
            value; the λ of an earlier run, as tensor name -> (K,), or the folder of that run.
        granularity: `layer`, `block` or `task`; see `Coefficients`.
        clamp: whether λ is kept in [0, 1].
        task_vectors: `dtype` (`fp32`, or `fp16` for half the memory of a float32 model); `storage`
            (`memory`; `host`, in the memory beside a GPU; `stream`, nothing is kept and the experts' own
            files are read when they are needed; `mmap`, a file that is read piece by piece); whether
            experts of `different` `pretraining` are allowed, see `TaskVectors.from_models`; and when
            `gradients` are contracted: `whole` after the backward pass, `arriving` within it, or as the
            storage suggests (`auto`).
        seed: of batches and task order.

    Raises:
        ValueError: an unknown option, or a number out of range, named.
    """

    layer: str | None = "head"
    sampler: str | Sampler = "confidence_difference"
    objective: str | Loss | Mapping[str, str | Loss] = "hard"
    update: str = "sequential"
    steps: int = 500
    batch_size: int = 32
    lr: float = 1e-2
    lr_coefficients: float | None = None
    lr_tints: float | None = None
    average: bool = False
    gradient_checkpointing: bool = False
    init: Init | str = 0.3
    granularity: str = "layer"
    clamp: bool = True
    task_vectors: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "lr",
            "lr_coefficients",
            "lr_tints",
            "average",
            "clamp",
            "seed",
            "init",
        ):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        if self.layer is not None and not isinstance(self.layer, str):
            raise ValueError(f"`layer` must be a layer's name or None. Found {self.layer!r}.")
        if self.layer is None and self.lr_tints:
            raise ValueError(f"`lr_tints={self.lr_tints}` has no effect with `layer=None`; drop one.")
        if self.lr_coefficients == 0 and (self.layer is None or self.lr_tints == 0):
            raise ValueError("Nothing would be trained: both λ and the tints are frozen.")
        resolve_sampler(self.sampler)
        _require_own_name(self.sampler, SAMPLERS)
        for objective in self.objectives:
            resolve_objective(objective)
            _require_own_name(objective, OBJECTIVES)
        object.__setattr__(self, "task_vectors", _task_vectors(self.task_vectors))
        for name, choices in (("update", UPDATES), ("granularity", GRANULARITIES)):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        for name in ("clamp", "average", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be true or false. Found {getattr(self, name)!r}.")
        for name, least in (("steps", 0), ("batch_size", 1), ("seed", 0)):
            _require_whole(name, getattr(self, name), least)
        _require_number("`seed`", self.seed, 0, 2**63 - 1)
        for name in ("lr", "lr_coefficients", "lr_tints"):
            if getattr(self, name) is not None or name == "lr":
                _require_number(f"`{name}`", getattr(self, name), 0, math.inf)
        self._check_init()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Settings":
        """Make settings from keyword arguments or a configuration.

        Args:
            options: name -> value.

        Raises:
            ValueError: an unknown name, or as the class.
        """
        names = [entry.name for entry in fields(cls)]
        for name in options:
            if name not in names:
                raise unknown("setting", name, names)
        return cls(**options)

    @property
    def objectives(self) -> list[str | Loss]:
        """All that are in use."""
        return list(self.objective.values()) if isinstance(self.objective, Mapping) else [self.objective]

    def objective_of(self, task: str) -> Objective:
        """Return the objective of a task.

        Args:
            task: its name.

        Raises:
            ValueError: `objective` names tasks, but not this one.
        """
        if not isinstance(self.objective, Mapping):
            return resolve_objective(self.objective)
        if task not in self.objective:
            raise ValueError(f"`objective` names none for the task `{task}`. Found {list(self.objective)}.")
        return resolve_objective(self.objective[task])

    def sampler_of(self, task: str) -> Sampler:
        """Return the sampler of a task: where its output is no class distribution, every sample is kept.

        A function of the user's own chooses in any case.

        Args:
            task: its name.
        """
        reads = self.objective_of(task).reads
        named = isinstance(self.sampler, str)
        if named and reads in (Reads.LABELS, Reads.VALUES, Reads.DIRECTION):
            return every_sample
        return resolve_sampler(self.sampler)

    def to_json(self) -> dict[str, Any]:
        """Return the settings; callables by their names, tensors by a hash."""
        return {entry.name: _as_json(getattr(self, entry.name)) for entry in fields(self)}

    def _check_init(self) -> None:
        low, high = (0.0, 1.0) if self.clamp else (-math.inf, math.inf)
        if isinstance(self.init, str):
            return  # a folder, which `tint` reads; see `run.artifact`
        if isinstance(self.init, (Tensor, Sequence)):
            raise ValueError(
                "`init` must be one number, `{task: number}`, the λ of an earlier run as `{tensor name: "
                f"tensor (K,)}}`, or that run's folder. Found {self.init!r}."
            )
        values = self.init.items() if isinstance(self.init, Mapping) else [("", self.init)]
        for name, value in values:
            where = f"`init` of `{name}`" if name else "`init`"
            for number in value.flatten().tolist() if isinstance(value, Tensor) else [value]:
                _require_number(where, number, low, high)


def reads_in(settings: Mapping[str, Any], task: str) -> Reads:
    """Return what the objective of a task reads of the expert.

    Args:
        settings: as `Settings.to_json` gives them.
        task: its name.
    """
    objective = settings.get("objective", Settings.objective)
    name = str(objective.get(task) if isinstance(objective, Mapping) else objective)
    if name in OBJECTIVES:
        return OBJECTIVES[name].reads
    return next((reads for reads in Reads if name.endswith(READS + reads.value)), Reads.EVERYTHING)


def _plain(value: Any) -> Any:
    """Return NumPy's and PyTorch's single numbers as Python's, and a path as a string."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, PathLike):
        return fspath(value)
    return (
        value.item() if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0 else value
    )


def _require_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number, at least {least}. Found {value!r}.")


def _require_number(where: str, value: Any, low: float, high: float) -> None:
    """Refuse what is not a finite number from `low` to `high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high:
        return
    bounds = (
        ""
        if low == -math.inf
        else f", at least {low:g}"
        if high == math.inf
        else f" from {low:g} to {high:g}"
    )
    hint = " YAML takes a number without a point for text: write 1.0e-3, not 1e-3."
    clamped = " (λ is kept there: `clamp=false` lifts it)" if high == 1 else ""
    text = hint if isinstance(value, str) else ""
    raise ValueError(f"{where} must be a number{bounds}{clamped}. Found {value!r}.{text}")


def _task_vectors(options: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(options, Mapping):
        raise ValueError(f"`task_vectors` must map settings to values, as dtype: fp16. Found {options!r}.")
    choices: dict[str, Iterable[str]] = {
        "dtype": DTYPES, "storage": STORAGES, "pretraining": PRETRAININGS, "gradients": GRADIENTS
    }  # fmt: skip
    defaults = {"dtype": "fp32", "storage": "memory", "pretraining": "same", "gradients": "auto"}
    complete = {**defaults, **options}
    if complete["storage"] == "sharded":
        raise ValueError(
            "`task_vectors.storage: sharded` is no more: processes that share one model, by FSDP2, share "
            "its task vectors too. Leave it out, and start `fusion_bench … fabric=fsdp2`, `torchrun … "
            "mergekit-tint learn`, or `tint(processes=DistributedProcesses(shards=True))`."
        )
    for name, value in complete.items():
        if name not in choices:
            raise unknown("setting of task_vectors", name, choices)
        if value not in choices[name]:
            raise unknown(f"task_vectors.{name}", value, choices[name])
    return complete


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        if any(isinstance(entry, Tensor) for entry in value.values()):
            rows = [(name, torch.as_tensor(value[name]).tolist()) for name in sorted(value)]
            return f"{len(value)} tensors {hashlib.sha256(repr(rows).encode()).hexdigest()[:8]}"
        return {key: _as_json(entry) for key, entry in value.items()}
    return _name(value) if callable(value) else value


def _name(function: Any) -> str:
    """Return the name of a callable: built in, the user's own, or that it has none."""
    if built_in := [name for name, sampler in SAMPLERS.items() if sampler is function]:
        return built_in[0]
    if not isinstance(function, Objective):
        return name_of(function)
    whole = function.reads is Reads.EVERYTHING or function.name in OBJECTIVES
    return function.name if whole else f"{function.name}{READS}{function.reads.value}"


def _require_own_name(function: object, built_in: Mapping[str, object]) -> None:
    """Refuse a name that would pass for one of ours."""
    if callable(function):
        name = _name(function)
        ours = built_in.get(name.partition(":")[0], function)
        if ours is not function and ours != function:
            raise ValueError(f"`{name}` is the name of one that is built in. Give yours another.")
