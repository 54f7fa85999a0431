"""The merged encoder θ(λ)_l = θ₀_l + Σ_k λ_lk τ_k,l, and its gradient ∂λ_lk = ⟨∂θ_l, τ_k,l⟩.

Implemented twice: a reference that autograd can see through, and the fast path that training uses. The
fast path merges outside autograd, so that the merged weights are leaves, and takes ∂λ once per
optimizer step from their summed gradients. Merge and ∂λ cost one matrix-vector product a tensor each,
and run at the speed of memory. The tests hold the two equal in value and gradient.

`merge_tensor` is the same sum for checkpoints that are merged tensor by tensor, without task vectors.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fusion_tinting.method.models import caching, renew
from fusion_tinting.method.task_vectors import TaskVectors

ELEMENTS = 1 << 18
"""Elements that `merge_tensor` converts at a time; they stay in the processor's cache."""
ROUNDING = 1e-5
"""By what share of its largest number a merged tensor may differ that another device has merged."""


def merge_reference(vectors: TaskVectors, lam: Tensor) -> dict[str, Tensor]:
    """Return θ(λ) by the formula, differentiable in `lam`: tensor name -> merged tensor.

    Args:
        vectors: θ₀ and the task vectors.
        lam: the effective coefficients, shape (L, K).

    Raises:
        ValueError: `lam` of another shape.
    """
    lam = _rows(vectors, lam)
    base, deltas = vectors.views(vectors.base), vectors.views(vectors.deltas)
    return {
        name: base[name]
        + sum(weight * delta.float() for weight, delta in zip(row, deltas[name], strict=True))
        for name, row in zip(vectors.names, lam * vectors.scales, strict=True)
    }


@torch.no_grad()
def merge(vectors: TaskVectors, lam: Tensor, out: Tensor | None = None) -> Tensor:
    """Merge into one flat buffer, shape (P,), without autograd, and return it.

    `vectors.views` names its parts.

    Args:
        vectors: θ₀ and the task vectors.
        lam: the effective coefficients, shape (L, K).
        out: the buffer to fill, shape (P,); a new one by default.

    Raises:
        ValueError: `lam` of another shape.
    """
    out = torch.empty_like(vectors.base) if out is None else out
    weights = _rows(vectors, lam).to(vectors.base) * vectors.scales
    for place, _, start, stop, deltas in vectors.pieces():
        torch.addmv(vectors.base[start:stop], deltas.t(), weights[place], out=out[start:stop])
    vectors.rows.complete(out)
    return out


def merge_tensor(base: Tensor, experts: Iterable[Tensor], lams: Iterable[float]) -> Tensor:
    """Return θ₀_l + Σ_k λ_lk (θ_k,l − θ₀_l) of one tensor, in float32 (or float64, if the base is).

    Gradients of the tensors flow, where they want any.

    Args:
        base: θ₀_l, any shape and floating-point dtype.
        experts: θ_k,l of every expert, of the same shape; taken one at a time, so that they may be read
            then.
        lams: λ_lk of every expert.

    Raises:
        ValueError: an expert of another shape, or not as many as there are λ.
    """
    dtype = torch.promote_types(base.dtype, torch.float32)
    start = base.reshape(-1)
    total = start.to(dtype, copy=True)
    for expert, lam in zip(experts, lams, strict=True):
        if expert.shape != base.shape:
            raise ValueError(
                f"An expert's tensor has shape {tuple(expert.shape)}; the base's has {tuple(base.shape)}."
            )
        tensor = expert.reshape(-1)
        for first in range(0, len(total), ELEMENTS):
            piece = slice(first, first + ELEMENTS)
            total[piece].add_(tensor[piece].to(dtype) - start[piece].to(dtype), alpha=lam)
    return total.view(base.shape)


@torch.no_grad()
def coefficient_gradient(vectors: TaskVectors, gradients: Mapping[str, Tensor]) -> Tensor:
    """Return ∂λ_lk = ⟨∂θ_l, τ_k,l⟩, shape (L, K).

    Where the task vectors are shared out over processes, it is this process's part of the sum over them.

    Args:
        vectors: θ₀ and the task vectors.
        gradients: tensor name -> ∂θ_l; a tensor that is not named has none, and ∂λ_l = 0. Overwritten
            where the task vectors are shared out.
    """
    result = vectors.base.new_zeros(len(vectors.slots), len(vectors.tasks))
    flat = _flat(vectors, gradients)
    for place, name, start, stop, deltas in vectors.pieces(flat):
        first = vectors.slots[name][0]
        result[place].addmv_(deltas, flat[name][start - first : stop - first])
    return result * vectors.scales


def _flat(vectors: TaskVectors, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    flat = {name: gradient.reshape(-1) for name, gradient in gradients.items()}
    if vectors.rows.shared:  # every process takes part for every tensor, whatever it has visited
        for name, (start, stop, _) in vectors.slots.items():
            flat.setdefault(name, vectors.base.new_zeros(stop - start))
            vectors.rows.sum(start, flat[name])
    return flat


class MergedWeights:
    """Makes a module's parameters views of one flat buffer, into which `write` merges.

    Used as a context: on leaving, the parameters own their memory again and have no gradients.

    Args:
        module: whose parameters `vectors` names; its values are overwritten by each `write`.
        vectors: θ₀ and the task vectors.
        trainable: whether gradients are wanted.

    Attributes:
        weights: θ(λ), shape (P,).
    """

    def __init__(self, module: nn.Module, vectors: TaskVectors, trainable: bool = True):
        self.vectors, self.trainable = vectors, trainable
        self.weights = torch.empty_like(vectors.base)
        self._parameters = {name: module.get_parameter(name) for name in vectors.slots}

    def __enter__(self) -> "MergedWeights":
        for name, view in self.vectors.views(self.weights).items():
            self._parameters[name].data = view
            self._parameters[name].requires_grad_(self.trainable)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters.values():
            parameter.data, parameter.grad = parameter.data.clone(), None
            parameter.requires_grad_(False)

    def write(self, lam: Tensor) -> None:
        """Set the module's parameters to θ(λ).

        Args:
            lam: the effective coefficients, shape (L, K).
        """
        merge(self.vectors, lam, out=self.weights)

    def take_gradients(self) -> dict[str, Tensor]:
        """Return tensor name -> the gradient accumulated since the last call, for those that have one."""
        taken = {n: p.grad.to_dense() for n, p in self._parameters.items() if p.grad is not None}
        for name in taken:
            self._parameters[name].grad = None
        return taken


@torch.no_grad()
def load_merged(module: nn.Module, vectors: TaskVectors, lam: Tensor) -> nn.Module:
    """Copy θ(λ) into `module`'s own parameters, in their dtype, and return it.

    Args:
        module: whose parameters `vectors` names.
        vectors: θ₀ and the task vectors.
        lam: the effective coefficients, shape (L, K); or (K,), or one number, for every tensor.

    Raises:
        ValueError: `lam` of another shape, or not finite.
    """
    if not lam.isfinite().all():
        raise ValueError("`lam` must hold finite numbers.")
    for name, tensor in vectors.views(merge(vectors, lam)).items():
        module.get_parameter(name).copy_(tensor)
    renew(caching(module))
    return module


@torch.no_grad()
def unlike(module: nn.Module, vectors: TaskVectors, rows: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors of `module` that are not those of θ(λ), but for rounding.

    Args:
        module: whose parameters `vectors` names.
        vectors: θ₀ and the task vectors.
        rows: tensor name -> its K values of λ.
    """
    found = []
    lam = torch.stack([rows[name] for name in vectors.slots]).to(vectors.base) * vectors.scales
    for place, name, start, stop, deltas in vectors.pieces():
        first, merged = (
            vectors.slots[name][0],
            torch.addmv(vectors.base[start:stop], deltas.t(), lam[place]),
        )
        own = module.get_parameter(name).reshape(-1)[start - first : stop - first].to(merged)
        allowed = ROUNDING * torch.cat([own, merged]).abs().sum() / max(1, len(own))
        if not ((own - merged).abs() <= torch.maximum(ROUNDING * merged.abs(), allowed)).all():
            found += [name] if name not in found else []
    return found


def _rows(vectors: TaskVectors, lam: Tensor) -> Tensor:
    """Return λ with a row for each tensor and a column for each task."""
    shape = len(vectors.slots), len(vectors.tasks)
    if lam.shape == shape:
        return lam
    try:
        return lam.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"`lam` must have shape {shape}, one row for each merged tensor and one column for each task. "
            f"Found {tuple(lam.shape)}."
        ) from None
