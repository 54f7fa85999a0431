"""Changes to Model Tinting that are not in its paper, for `ablations.py`.

Other starts, tints of low rank, and other ways to sum the tasks' gradients.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fusion_tinting import Adaptation, TaskVectors, TintedModel
from fusion_tinting.method.rows import Rows

START = 0.3
"""λ at which the changed task vectors give the training-free merge that they come from."""


def tsv_m(model: TintedModel) -> None:
    """Start from TSV-M (Gargiulo et al., arXiv 2412.00081) instead of Task Arithmetic.

    Of each matrix the first 1/K singular vectors of every task, all U and all V made orthogonal together;
    task k's vector is its own columns' part. Other tensors are averaged.
    """
    model.vectors = changed(model.vectors, _tsv_m)


def iso_c(model: TintedModel) -> None:
    """Start from ISO-C (Marczak et al., arXiv 2502.04959) instead of Task Arithmetic.

    The vectors of a matrix with Σ τ_k = U σ Vᵀ are M τ_k, M = U diag(σ̄ / σ) Uᵀ. Other tensors are averaged.
    """
    model.vectors = changed(model.vectors, _iso_c)


def changed(vectors: TaskVectors, matrices: Callable[[Tensor], Tensor]) -> TaskVectors:
    """Return task vectors whose sum, times `START`, is another merge.

    Args:
        vectors: the task vectors of K experts.
        matrices: K task vectors of a matrix, (K, m, n), -> those in their place, (K, m, n).
    """
    rows = Rows(vectors.views(vectors.base), len(vectors.tasks), torch.float32)
    rows.whole.copy_(vectors.deltas)
    for place, delta in enumerate(vectors.views(rows.whole).values()):
        delta *= vectors.scales[place].view(-1, *[1] * (delta.ndim - 1))
        new = matrices(delta) if delta.ndim == 3 else delta / len(delta)
        delta.copy_(new / START)
    return replace(vectors, kept=rows)


def _tsv_m(deltas: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(deltas, full_matrices=False)
    kept = s.shape[1] // len(deltas)
    left = polar(torch.cat([*u[:, :, :kept]], dim=1)).chunk(len(deltas), dim=1)
    right = polar(torch.cat([*v[:, :kept]], dim=0)).chunk(len(deltas), dim=0)
    return torch.stack(
        [a @ s[k, :kept].diag() @ b for k, (a, b) in enumerate(zip(left, right, strict=True))]
    )


def polar(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal rows or columns."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def _iso_c(deltas: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(deltas.sum(0), full_matrices=False)
    return u @ (s.mean() / s).diag() @ u.T @ deltas


class LowRank(nn.Module):
    """W + A B, of which A and B are trained."""

    def __init__(self, delta: Tensor, rank: int):
        super().__init__()
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        root = s[:rank].sqrt()
        self.left, self.right = nn.Parameter(u[:, :rank] * root), nn.Parameter(root[:, None] * v[:rank])

    def forward(self, weight: Tensor) -> Tensor:
        """Return the matrix with what is added to it."""
        return weight + self.left @ self.right


def low_rank(model: TintedModel, rank: int) -> None:
    """Make tints of low rank.

    They keep the pre-trained block's matrices and train a product A B that is added to each; it starts at
    the truncated singular value decomposition of the task vector.
    """
    pretrained = model.remerged(0.0).encoder.get_submodule(model.layer)
    for tint in model.tint_modules:
        for name, linear in tint.named_modules():
            if isinstance(linear, nn.Linear):
                base = pretrained.get_submodule(name).weight
                added = LowRank(linear.weight.detach() - base, rank)
                linear.weight.data.copy_(base)
                linear.weight.requires_grad_(False)
                parametrize.register_parametrization(linear, "weight", added)


class Aggregated(Adaptation):
    """An adaptation whose λ follows an aggregation of the K tasks' gradients (TorchJD's; joint mode).

    It needs the gradients apart: K sweeps over the task vectors instead of one, and a pass for each task.

    Args:
        aggregator: K -> function of the tasks' K gradients, (K, L · K), to one, (L · K,).
    """

    def __init__(self, *args: object, aggregator: Callable[[int], Callable[[Tensor], Tensor]]):
        super().__init__(*args)
        self.aggregate, self.jacobian = aggregator(len(self.model.tasks)), []

    def __enter__(self) -> "Aggregated":
        super().__enter__().numbers_at_once = 0
        return self

    def teach(self, step: int, batches: dict) -> dict:
        """Teach a task, and take its gradient."""
        kept = super().teach(step, batches)
        self.jacobian.append(super().take_gradient())
        return kept

    def take_gradient(self) -> Tensor:
        """Return the aggregation, in place of the sum."""
        rows = torch.stack(self.jacobian).flatten(1)
        shape = self.jacobian[0].shape
        self.jacobian = []
        return self.aggregate(rows).view(shape)
