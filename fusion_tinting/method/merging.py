"""The merged encoder θ(λ)_l = θ₀_l + Σ_k λ_lk τ_k,l, and its gradient ∂λ_lk = ⟨∂θ_l, τ_k,l⟩.

Implemented twice: a reference that autograd can see through, and the fast path that training uses. The
fast path merges outside autograd, so that the merged weights are leaves, and takes ∂λ once per
optimizer step from their summed gradients. Merge and ∂λ cost one matrix-vector product a tensor each,
and run at the speed of memory. The tests hold the two equal in value and gradient.

`merge_tensor` is the same sum for checkpoints that are merged tensor by tensor, without task vectors.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fusion_tinting.method.models import caching, renew
from fusion_tinting.method.rows import Rows
from fusion_tinting.method.shards import here
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
        ValueError: `lam` of another shape; or other processes hold parts of the task vectors.
    """
    lam = _rows(vectors, _whole(vectors, lam))
    weights = lam.to(vectors.device) * vectors.scales
    parts: dict[str, list[Tensor]] = {name: [] for name in vectors.slots}
    for place, name, _, _, base, deltas in vectors.pieces():
        terms = (weight * delta for weight, delta in zip(weights[place], deltas.clone(), strict=True))
        parts[name].append(base + sum(terms))
    return {name: torch.cat(parts[name]).view(shape) for name, (_, _, shape) in vectors.slots.items()}


@torch.no_grad()
def merge(vectors: TaskVectors, lam: Tensor, out: Tensor | None = None) -> Tensor:
    """Merge into one flat float32 buffer, shape (P,), without autograd, and return it.

    `vectors.views` names its parts.

    Args:
        vectors: θ₀ and the task vectors.
        lam: the effective coefficients, shape (L, K).
        out: the buffer to fill, shape (P,); a new one by default.

    Raises:
        ValueError: `lam` of another shape; or other processes hold parts of the task vectors.
    """
    out = torch.empty(vectors.size, device=vectors.device, dtype=torch.float32) if out is None else out
    merge_into(vectors.views(out), vectors, _whole(vectors, lam))
    return out


@torch.no_grad()
def merge_into(tensors: Mapping[str, Tensor], vectors: TaskVectors, lam: Tensor) -> None:
    """Set tensors to θ(λ), in their own precision; the sums are taken in float32.

    Args:
        tensors: tensor name -> tensor to fill; of a sharded one the rows that are here.
        vectors: θ₀ and the task vectors.
        lam: the effective coefficients, shape (L, K).

    Raises:
        ValueError: `lam` of another shape.
    """
    weights = _rows(vectors, lam).to(vectors.device, torch.float32) * vectors.scales
    own = {name: here(tensor) for name, tensor in tensors.items()}
    flat = {
        name: tensor.view(-1) if tensor.is_contiguous() else tensor.new_empty(tensor.numel())
        for name, tensor in own.items()
    }
    for place, name, start, stop, base, deltas in vectors.pieces():
        target = flat[name][start:stop]
        if target.dtype == torch.float32:
            torch.addmv(base, deltas.t(), weights[place], out=target)
        else:
            target.copy_(torch.addmv(base, deltas.t(), weights[place]))
    for name, tensor in own.items():
        if not tensor.is_contiguous():
            tensor.copy_(flat[name].view(tensor.shape))


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

    Where several processes hold parts of the task vectors, it is this process's part of the sum over them.

    Args:
        vectors: θ₀ and the task vectors.
        gradients: tensor name -> ∂θ_l; a tensor that is not named has none, and ∂λ_l = 0.
    """
    flat = {name: here(gradient).reshape(-1) for name, gradient in gradients.items()}
    result = torch.zeros_like(vectors.scales)
    for place, name in enumerate(vectors.slots):
        if name in flat:
            _add_products(result[place], vectors, name, flat[name])
    vectors.kept.release()
    return result * vectors.scales


def _add_products(row: Tensor, vectors: TaskVectors, name: str, gradient: Tensor) -> None:
    """Add ⟨∂θ_l, τ_k,l⟩ over the scales to a row of ∂λ, shape (K,), of a gradient laid flat."""
    for start, stop, _, deltas in vectors.kept.pieces(name):
        row.addmv_(deltas, gradient[start:stop].float())


def on_gradient(parameter: Tensor, call: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function with a parameter whenever its gradient has arrived, whole.

    Args:
        parameter: that takes gradients.
        call: the function.
    """
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
    return handle


class MergedWeights:
    """Merges into a module's parameters at each `write`, and takes ∂λ from their gradients.

    The gradients ∂θ wait in the parameters until `take_gradient` contracts them with the task vectors; or,
    with `arriving`, each is contracted in the backward pass, as soon as it is there, and dropped: then no
    more than one tensor's is ever there, where P numbers of them would be.

    Used as a context: on leaving, the parameters own their memory again and have no gradients.

    Args:
        module: whose parameters `vectors` names; its values are overwritten by each `write`.
        vectors: θ₀ and the task vectors.
        trainable: whether gradients are wanted.
        arriving: whether gradients are contracted as they arrive.
    """

    def __init__(
        self, module: nn.Module, vectors: TaskVectors, trainable: bool = True, arriving: bool = False
    ):
        self.vectors, self.trainable, self._arriving = vectors, trainable, arriving and trainable
        self._parameters = {name: module.get_parameter(name) for name in vectors.slots}
        full = all(parameter.dtype == torch.float32 for parameter in self._parameters.values())
        self._flat = full and isinstance(vectors.kept, Rows)
        self._places = {name: place for place, name in enumerate(vectors.slots)}
        self._scales = vectors.scales
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "MergedWeights":
        if self._flat:
            self._weights = torch.empty(self.vectors.size, device=self.vectors.device)
            for name, view in self.vectors.views(self._weights).items():
                self._parameters[name].data = view
        self._gradient = self._no_gradient()
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self.trainable)
            if self._arriving:
                self._hooks.append(on_gradient(parameter, partial(self._contract, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)
            if self._flat:
                parameter.data = parameter.data.clone()

    def write(self, lam: Tensor) -> None:
        """Set the module's parameters to θ(λ).

        Args:
            lam: the effective coefficients, shape (L, K).
        """
        if self._flat:
            merge(self.vectors, lam, out=self._weights)
        else:
            merge_into({name: p.data for name, p in self._parameters.items()}, self.vectors, lam)

    def take_gradient(self) -> Tensor:
        """Return ∂λ, shape (L, K), of what has been accumulated since the last call."""
        if self._arriving:
            taken, self._gradient = self._gradient, self._no_gradient()
            return taken
        gradients = {n: here(p.grad).to_dense() for n, p in self._parameters.items() if p.grad is not None}
        for name in gradients:
            self._parameters[name].grad = None
        return coefficient_gradient(self.vectors, gradients)

    def _no_gradient(self) -> Tensor:
        return torch.zeros(len(self.vectors.slots), len(self.vectors.tasks), device=self.vectors.device)

    @torch.no_grad()
    def _contract(self, name: str, parameter: Tensor) -> None:
        """Add ⟨∂θ_l, τ_k,l⟩ of a gradient that has just arrived to ∂λ, and drop it."""
        assert parameter.grad is not None
        gradient, place = here(parameter.grad).to_dense().reshape(-1), self._places[name]
        parameter.grad = None
        part = torch.zeros_like(self._gradient[place])
        _add_products(part, self.vectors, name, gradient)
        self._gradient[place] += part * self._scales[place]


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
    merge_into({name: module.get_parameter(name).data for name in vectors.slots}, vectors, lam)
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
    found: list[str] = []
    lam = torch.stack([rows[name] for name in vectors.slots]).to(vectors.device) * vectors.scales
    for place, name, start, stop, base, deltas in vectors.pieces():
        merged = torch.addmv(base, deltas.t(), lam[place])
        parameter = module.get_parameter(name)
        own = here(parameter).reshape(-1)[start:stop].to(merged)
        share = max(ROUNDING, torch.finfo(parameter.dtype).eps)
        allowed = share * torch.cat([own, merged]).abs().sum() / max(1, len(own))
        if not ((own - merged).abs() <= torch.maximum(share * merged.abs(), allowed)).all():
            found += [name] if name not in found else []
    return found


def _whole(vectors: TaskVectors, lam: Tensor) -> Tensor:
    """Return `lam`, where all of the task vectors is here to be merged by it."""
    if vectors.kept.shared:
        raise ValueError(
            "Several processes share these task vectors, so that none can merge them as a whole: "
            "`load_merged` writes a merge into the model that they share."
        )
    return lam


def _rows(vectors: TaskVectors, lam: Tensor) -> Tensor:
    """Return λ with a row for each tensor and a column for each task."""
    lam = torch.as_tensor(lam)
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
