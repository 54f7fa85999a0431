"""Batch-norm statistics as merged tensors: each layer's μ and log σ² have task vectors and λ of their own.

    μ(λ) = μ₀ + Σ_k λ_k (μ_k − μ₀)        log σ²(λ) = log σ²₀ + Σ_k λ_k (log σ²_k − log σ²₀)

λ = 0 is the pre-trained model and a one-hot λ the expert, statistics too; they are learned with all other
tensors, and the logarithm keeps a variance positive whatever the sum of λ.

Accuracy %, mean of the tasks, `python benchmarks/batch_norm.py` (resnet-mini_3, one zoo, 200 iterations):

| statistics | Task Arithmetic, λ = 0.3 | Task Arithmetic, λ = 0.4 | tinted |
|---|---|---|---|
| the pre-trained model's | 24.7 | 27.0 | 85.9 |
| the experts' average | 47.4 | 47.2 | 90.2 |
| recomputed at λ = 0.3 | 73.3 | 66.5 | 91.6 |
| the same, and again after adaptation | 73.3 | 66.5 | 91.2 |
| merged, σ² itself | 51.0 | 20.0 | 90.5 |
| merged, log σ² (ours) | 55.8 | 45.6 | 91.0 |

Averaged and recomputed statistics are within a point of ours, once there is a tint, and recomputed ones
better for Task Arithmetic. But they are right at a single λ, so that a one-hot λ is not the expert, and
recomputing needs a pass over the inputs of all tasks. Merging σ² itself breaks down where the sum of λ
passes one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class MergedBatchNorm(nn.Module):
    """Batch norm in evaluation, whose statistics are parameters: y = (x − μ) · exp(−s / 2) · w + b.

    Attributes:
        running_mean: μ, shape (C,).
        log_variance: s = log(σ² + ε), shape (C,).
        weight, bias: w and b, shape (C,), or None as in the layer that it stands for.
    """

    def __init__(self, norm: _BatchNorm):
        super().__init__()
        self.make = partial(
            type(norm), norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine
        )
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean = nn.Parameter(norm.running_mean.detach().clone(), requires_grad=False)
        merged = log_variance(norm.eps).merged(norm.running_var.detach())
        self.log_variance = nn.Parameter(merged, requires_grad=False)
        # Only to be restored: no part of the model, nor of a tint's file.
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize (B, C) or (B, C, ...)."""
        scale = (-self.log_variance / 2).exp()
        scale = scale if self.weight is None else scale * self.weight
        shift = -self.running_mean * scale
        shift = shift if self.bias is None else shift + self.bias
        shape = (-1, *[1] * (inputs.dim() - 2))
        return torch.addcmul(shift.view(shape), inputs, scale.view(shape))

    @torch.no_grad()
    def restored(self) -> _BatchNorm:
        """Return the layer of PyTorch that computes the same in evaluation."""
        norm = self.make().to(self.running_mean)
        norm.running_mean.copy_(self.running_mean)
        norm.num_batches_tracked.copy_(self.num_batches_tracked)
        norm.running_var.copy_(log_variance(self.eps).stored(self.log_variance))
        if norm.affine:
            norm.weight.copy_(self.weight)
            norm.bias.copy_(self.bias)
        return norm.requires_grad_(False).eval()

    def extra_repr(self) -> str:
        """Return what the module's representation says of it."""
        return f"{len(self.running_mean)}, eps={self.eps}"


def merge_statistics(module: nn.Module) -> nn.Module:
    """Make the statistics of every batch norm in `module` parameters, in place, and return it.

    It then computes what it did in `eval()` mode, whatever its mode. Call it on the pre-trained model and
    on every expert, before they are given to `fusion_tinting.tint`.
    """
    return _replaced(module, lambda m: isinstance(m, _BatchNorm) and m.track_running_stats, MergedBatchNorm)


def restore_statistics(module: nn.Module) -> nn.Module:
    """Undo `merge_statistics`, in place: batch norms of PyTorch again, with names as on disk."""
    return _replaced(module, lambda m: isinstance(m, MergedBatchNorm), MergedBatchNorm.restored)


class Form(NamedTuple):
    """In which form a tensor of a checkpoint is merged.

    Attributes:
        merged: the tensor -> what is merged.
        stored: the reverse.
    """

    merged: Callable[[Tensor], Tensor]
    stored: Callable[[Tensor], Tensor]


AS_IT_IS = Form(lambda tensor: tensor, lambda tensor: tensor)


def log_variance(eps: float) -> Form:
    """Return the form in which a variance σ² is merged: log(σ² + ε).

    Args:
        eps: ε of the batch norm.
    """
    return Form(lambda tensor: (tensor + eps).log(), lambda tensor: (tensor.exp() - eps).clamp(min=0))


def is_variance(name: str) -> bool:
    """Return whether a tensor is the variance of a batch norm, by its name on disk."""
    return name.rpartition(".")[2] == "running_var"


def name_on_disk(name: str) -> str:
    """Return the buffer that a parameter of `merge_statistics` stands for; other names as they are."""
    prefix, matched, rest = name.rpartition("log_variance")
    return f"{prefix}running_var" if matched and not rest else name


def name_of_parameter(name: str) -> str:
    """Return the reverse of `name_on_disk`."""
    return name.removesuffix("running_var") + "log_variance" if is_variance(name) else name


def _replaced(module: nn.Module, which: Callable, replace: Callable) -> nn.Module:
    if which(module):
        return replace(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, which, replace))
    return module
