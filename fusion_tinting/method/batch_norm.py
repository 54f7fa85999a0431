"""Batch-norm statistics as merged tensors: each layer's μ and log σ² have task vectors and λ of their own.

    μ(λ) = μ₀ + Σ_k λ_k (μ_k − μ₀)        log σ²(λ) = log σ²₀ + Σ_k λ_k (log σ²_k − log σ²₀)

λ = 0 is the pre-trained model and a one-hot λ the expert, statistics too; they are learned with all other
tensors, and the logarithm keeps a variance positive whatever the sum of λ.
`families.batch_norm` compares it with other ways.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusion_tinting.method.models import copied

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Whose statistics are merged. A class derived from one of these may compute more than they do."""


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
        assert norm.running_mean is not None and norm.running_var is not None
        self.running_mean = nn.Parameter(norm.running_mean.detach().clone(), requires_grad=False)
        variance = norm.running_var.detach()  # of half precision its logarithm is not
        variance = variance.to(torch.promote_types(variance.dtype, torch.float32))
        self.log_variance = nn.Parameter(log_variance(norm.eps).merged(variance), requires_grad=False)
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
        norm.running_var = log_variance(self.eps).stored(self.log_variance).to(self.running_mean)
        norm.load_state_dict({**self.state_dict(), **dict(self.named_buffers())}, strict=False)
        return norm.requires_grad_(False).eval()

    def extra_repr(self) -> str:
        """Return what the module's representation says of it."""
        return f"{len(self.running_mean)}, eps={self.eps}"


def merge_statistics(module: nn.Module) -> nn.Module:
    """Make the statistics of every batch norm in `module` parameters, in place, and return it.

    It then computes what it did in `eval()` mode, whatever its mode. `fusion_tinting.tint` does so with
    copies of the models that it is given.
    """
    return _replaced(module, _has_statistics, MergedBatchNorm)


def with_merged_statistics(model: nn.Module) -> nn.Module:
    """Return the model itself, or one around the same parameters if there are statistics to merge.

    Args:
        model: not changed.
    """
    return merge_statistics(copied(model)) if any(map(_has_statistics, model.modules())) else model


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


def log_variance(eps: float) -> Form:
    """Return the form in which a variance σ² is merged: log(σ² + ε).

    Args:
        eps: ε of the batch norm.
    """
    return Form(lambda tensor: (tensor + eps).log(), lambda tensor: (tensor.exp() - eps).clamp(min=0))


def _has_statistics(module: nn.Module) -> bool:
    return type(module) in KINDS and module.running_mean is not None


def _replaced(
    module: nn.Module, which: Callable[[nn.Module], bool], replace: Callable[[Any], nn.Module]
) -> nn.Module:
    if which(module):
        return replace(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, which, replace))
    return module
