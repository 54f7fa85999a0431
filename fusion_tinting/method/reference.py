"""The whole loop once more, plain and slow, for head tints: for reading, and for the tests.

No flat buffers, no sharing of passes, no checkpoints: θ(λ) is built inside autograd before every task's
step, as in the released code, and torch's own Adam does the rest. The tests hold the fast path equal to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusion_tinting.method.merging import merge_reference
from fusion_tinting.method.objectives import Objective
from fusion_tinting.method.sampling import Sampler
from fusion_tinting.method.task_vectors import TaskVectors


class Visit(NamedTuple):
    """One batch of one task, and what the expert predicts for it."""

    task: str
    inputs: Tensor
    expert: Tensor


def adapt_reference(
    encoder: nn.Module,
    tints: Mapping[str, nn.Module],
    vectors: TaskVectors,
    visits: Sequence[Visit],
    *,
    sampler: Sampler,
    objective: Objective | Callable[[Tensor, Tensor], Tensor],
    init: float = 0.3,
    lr: float = 1e-2,
) -> Tensor:
    """Train λ and head tints as arXiv 2412.19098 has it: one Adam step per visit; return λ, shape (L, K).

        minimize over λ and φ_1..φ_K   Σ_k E_x [ loss( φ_k(encoder(x; θ(λ))), expert_k(x) ) ]

    Args:
        encoder: of the pre-trained model's class; its own values are not used.
        tints: task -> its head φ_k, trained in place.
        vectors: θ₀ and the task vectors.
        visits: the batches in the order in which they are visited.
        sampler: (logits, expert) -> who teaches, (B,) boolean. A batch that teaches nothing is passed over.
        objective: (logits, expert) -> losses (B,).
        init: where every λ starts.
        lr: Adam's learning rate, for λ and the tints.
    """
    raw = nn.Parameter(torch.full((len(vectors.slots), len(vectors.tasks)), init))
    optimizers = {task: torch.optim.Adam(tint.parameters(), lr) for task, tint in tints.items()}
    of_coefficients = torch.optim.Adam([raw], lr)
    for task, inputs, expert in visits:
        weights = merge_reference(vectors, raw.clamp(0, 1))
        logits = tints[task](functional_call(encoder, weights, inputs))
        keep = sampler(logits.detach(), expert)
        if not keep.any():
            continue
        torch.autograd.backward(objective(logits, expert)[keep].mean())
        for optimizer in (of_coefficients, optimizers[task]):
            optimizer.step()
            optimizer.zero_grad()
    return raw.detach().clamp(0, 1)
