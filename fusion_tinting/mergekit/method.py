"""The merge method `model_tinting`: θ₀ + Σ_k λ_k (θ_k − θ₀) with λ from a file, and a task's tint on top.

    merge_method: model_tinting
    base_model: /models/base
    models:
      - {model: /models/sst2, parameters: {task: sst2}}
      - {model: /models/cola, parameters: {task: cola}}
    parameters:
      coefficients: /run/coefficients.safetensors   # or a `weight` per model, as in task_arithmetic
      tint: /run/tints/sst2.safetensors             # optional

`register` makes it known to mergekit, which has no hook for plugins: `mergekit-tint` calls it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
from mergekit import merge_methods
from mergekit.merge_methods import (
    BasePolicy,
    InputContract,
    OptionalTensorPolicy,
    PerNonBase,
    TensorGroup,
    merge_method,
)
from pydantic import AfterValidator
from torch import Tensor

from fusion_tinting.artifact import MANIFEST
from fusion_tinting.errors import unknown
from fusion_tinting.files import read_json, read_tensors

NAME = "model_tinting"


class CoefficientFile:
    """`coefficients.safetensors` of an artefact: tensor name -> λ of every task.

    Attributes:
        tasks: in the order of the columns; from the file's own metadata.
        rows: tensor name -> (K,) float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, damaged, or with a value that is not finite.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows, metadata = read_tensors(path)
        self.tasks = json.loads(metadata.get("tasks", "null")) or _tasks_beside(path)
        for name, row in self.rows.items():
            if row.shape != (len(self.tasks),) or not torch.isfinite(row).all():
                raise ValueError(
                    f"`{name}` in `{path}` must hold {len(self.tasks)} finite numbers, one for each task "
                    f"of {self.tasks}. Found shape {tuple(row.shape)}: {row.flatten()[:8].tolist()}."
                )

    def value(self, name: str, task: str | None) -> float:
        """λ of one tensor and task.

        Raises:
            ValueError: a tensor or task that the file does not have.
        """
        if task is None:
            raise ValueError(f"With `coefficients` every model needs a `task`: one of {self.tasks}.")
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        if name not in self.rows:
            raise ValueError(f"`{self.path}` has no coefficients for the tensor `{name}`.")
        return float(self.rows[name][self.tasks.index(task)])


@lru_cache(maxsize=8)
def coefficient_file(path: str) -> CoefficientFile:
    """The coefficients in a file, read once."""
    return CoefficientFile(Path(path))


@lru_cache(maxsize=2)
def tint_file(path: str) -> dict[str, Tensor]:
    """The tensors of a tint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, damaged, or with a value that is not finite.
    """
    tensors, _ = read_tensors(Path(path))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"`{name}` in `{path}` holds NaN or infinite values.")
    return tensors


def _readable(read):
    """A validator that reads a file when the merge is planned, before anything is written."""

    def validate(path: str | None) -> str | None:
        if path is not None:
            read(path)
        return path

    return AfterValidator(validate)


@merge_method(
    name=NAME,
    pretty_name="Model Tinting",
    reference_url="https://arxiv.org/abs/2412.19098",
    contract=InputContract(base=BasePolicy.REQUIRED, min_non_base=1),
    optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
)
def model_tinting(
    group: TensorGroup,
    weight: PerNonBase[float | None] = None,
    task: PerNonBase[str | None] = None,
    coefficients: Annotated[str | None, _readable(coefficient_file)] = None,
    tint: Annotated[str | None, _readable(tint_file)] = None,
) -> Tensor:
    """θ₀_l + Σ_k λ_kl (θ_k,l − θ₀_l), one expert at a time, in float32; or the tint's own tensor.

    Args:
        group: one tensor of the base and of every expert.
        weight: λ of a model, where there is no `coefficients`.
        task: a model's task, which names its column of `coefficients`.
        coefficients: path of `coefficients.safetensors`.
        tint: path of `tints/<task>.safetensors`, whose tensors stand for the merged ones.

    Raises:
        ValueError: a model with neither `weight` nor `coefficients`, or with both; a task or a tensor that
            `coefficients` does not have; a tint of another shape.
    """
    name, base = group.metadata.name, group.base.tensor
    if tint is not None and name in tint_file(tint):
        return _tinted(tint, name, base)
    merged = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    start = merged.clone()
    for entry in group.non_base:
        lam = _lambda(name, weight[entry.id], task[entry.id], coefficients)
        merged.add_(entry.tensor.to(merged.dtype).sub(start), alpha=lam)
    return merged.to(base.dtype)


def register() -> None:
    """Make `merge_method: model_tinting` known to mergekit; more than once does no harm."""
    if all(method.spec.name != NAME for method in merge_methods.registered_methods()):
        merge_methods.register(model_tinting)


def _lambda(name: str, weight: float | None, task: str | None, coefficients: str | None) -> float:
    if (weight is None) == (coefficients is None):
        found = "none" if weight is None else "both"
        raise ValueError(
            f"`{NAME}` needs either a `weight` for every model or a file of `coefficients`. "
            f"Found {found} for `{name}`{'' if task is None else f' of task `{task}`'}."
        )
    return weight if coefficients is None else coefficient_file(coefficients).value(name, task)


def _tinted(path: str, name: str, base: Tensor) -> Tensor:
    tensor = tint_file(path)[name]
    if tensor.shape != base.shape:
        raise ValueError(
            f"`{name}` in `{path}` has shape {tuple(tensor.shape)}; the base's has {tuple(base.shape)}. "
            "`mergekit-tint variants` writes heads of a task's own shape."
        )
    return tensor.to(base.device, base.dtype)


def _tasks_beside(path: Path) -> list[str]:
    manifest = path.with_name(MANIFEST)
    if not manifest.is_file():
        raise ValueError(
            f"`{path}` does not say which task each column belongs to, nor is `{MANIFEST}` beside it. "
            "Expected the `coefficients.safetensors` of a run."
        )
    return read_json(manifest)["tasks"]
