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

from collections.abc import Callable
from typing import Annotated, Any

from mergekit import merge_methods
from mergekit.merge_methods import (
    BasePolicy,
    InputContract,
    OptionalTensorPolicy,
    PerNonBase,
    TensorGroup,
    merge_method,
)
from pydantic import AfterValidator, FiniteFloat
from torch import Tensor

from fusion_tinting.families.batch_norm import AS_IT_IS, is_variance, log_variance
from fusion_tinting.mergekit.run_files import coefficient_file, tint_file
from fusion_tinting.method.merging import merge_tensor

NAME = "model_tinting"


def _readable(read: Callable[[str], Any]) -> AfterValidator:
    """Return a validator that reads a file when the merge is planned, before anything is written."""

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
    weight: PerNonBase[FiniteFloat | None] = None,
    task: PerNonBase[str | None] = None,
    coefficients: Annotated[str | None, _readable(coefficient_file)] = None,
    tint: Annotated[str | None, _readable(tint_file)] = None,
    variance_epsilon: FiniteFloat | None = None,
) -> Tensor:
    """θ₀_l + Σ_k λ_kl (θ_k,l − θ₀_l), one expert at a time, in float32; or the tint's own tensor.

    Args:
        group: one tensor of the base and of every expert.
        weight: λ of a model, where there is no `coefficients`.
        task: a model's task, which names its column of `coefficients`.
        coefficients: path of `coefficients.safetensors`.
        tint: path of `tints/<task>.safetensors`, whose tensors stand for the merged ones.
        variance_epsilon: ε of the batch norms of a run that has merged their variances as log(σ² + ε).

    Raises:
        ValueError: a model with neither `weight` nor `coefficients`, or with both; a task or a tensor that
            `coefficients` does not have; a tint of another shape.
    """
    name, base = group.metadata.name, group.base.tensor
    logarithmic = variance_epsilon is not None and is_variance(name)
    form = log_variance(variance_epsilon) if logarithmic else AS_IT_IS
    if tint is not None and name in tint_file(tint):
        return form.stored(_tinted(tint, name, base))
    lams = [coefficient(name, weight[e.id], task[e.id], coefficients) for e in group.non_base]
    return form.stored(
        merge_tensor(form.merged(base), (form.merged(e.tensor) for e in group.non_base), lams)
    ).to(base.dtype)


def coefficient(name: str, weight: float | None, task: str | None, coefficients: str | None) -> float:
    """λ of one tensor and model, from what a recipe says of them.

    Raises:
        ValueError: neither or both of `weight` and `coefficients`, or as `CoefficientFile.value`.
    """
    if (weight is None) == (coefficients is None):
        given = "none" if weight is None else "both"
        raise ValueError(
            f"`{NAME}` needs either a `weight` for every model or a file of `coefficients`. "
            f"Found {given} for `{name}`{'' if task is None else f' of task `{task}`'}."
        )
    return weight if coefficients is None else coefficient_file(coefficients).value(name, task)


def register() -> None:
    """Make `merge_method: model_tinting` known to mergekit; more than once does no harm."""
    if all(method.spec.name != NAME for method in merge_methods.registered_methods()):
        merge_methods.register(model_tinting)


def _tinted(path: str, name: str, base: Tensor) -> Tensor:
    tensor = tint_file(path)[name]
    if tensor.shape != base.shape:
        raise ValueError(
            f"`{name}` in `{path}` has shape {tuple(tensor.shape)}; the base's has {tuple(base.shape)}. "
            "`mergekit-tint variants RUN OUT` writes heads of a task's own shape."
        )
    return tensor.to(base.device, base.dtype)
