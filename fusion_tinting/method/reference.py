"""The whole loop once more, plain and slow: for reading, and for the tests that hold the fast path to it.

No flat buffers, no shared passes, no checkpoints: θ(λ) is a sum inside autograd at every visit, as in the
released code, and torch's own Adam does the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusion_tinting.method.objectives import Loss
from fusion_tinting.method.sampling import Sampler
from fusion_tinting.method.tints import Layer

Tensors = dict[str, Tensor]


class Visit(NamedTuple):
    """One batch of one task.

    Attributes:
        task: its name.
        inputs: of the encoder.
        expert: what the expert predicts for them, (B, ...).
    """

    task: str
    inputs: Tensor
    expert: Tensor


def adapt_reference(
    pretrained: nn.Module,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    groups: Iterable[Sequence[Visit]],
    *,
    layer: Layer | None,
    sampler: Sampler,
    objective: Loss,
    init: float = 0.3,
    lr: float = 1e-2,
) -> tuple[Tensor, dict[str, Tensors]]:
    """Train λ and the tints as arXiv 2412.19098 has it; return λ, (L, K), and task -> its tint's tensors.

        minimize over λ and φ_1..φ_K   Σ_k E_x [ loss( C_k(x; θ(λ), φ_k), expert_k(x) ) ]

    Everything is computed in the dtype of the models, which are not changed.

    Args:
        pretrained: θ₀, an encoder in `eval()` mode.
        experts: task -> encoder.
        heads: task -> head.
        groups: the visits in order; each group ends with a step of Adam. A group is one visit in the paper,
            one of every task in joint mode.
        layer: that is tinted; None for λ alone.
        sampler: (logits, expert) -> who teaches, (B,) boolean.
        objective: (logits, expert) -> losses (B,).
        init: where every λ starts.
        lr: Adam's learning rate, for λ and the tints.
    """
    base = {name: p.detach() for name, p in pretrained.named_parameters()}
    deltas = [{name: p.detach() - base[name] for name, p in e.named_parameters()} for e in experts.values()]
    like = next(iter(base.values()))
    lam = torch.full((len(base), len(experts)), init, dtype=like.dtype, requires_grad=True)
    tints = {task: _tint(layer, experts[task], heads[task]) for task in experts}
    adam = torch.optim.Adam([lam, *(p for tint in tints.values() for p in tint.values())], lr)
    for group in groups:
        for task, inputs, expert in group:
            theta = {}
            for name, row in zip(base, lam.clamp(0, 1), strict=True):
                summed = sum(weight * delta[name] for weight, delta in zip(row, deltas, strict=True))
                theta[name] = base[name] + summed
            in_head = layer is not None and layer.in_head
            in_encoder, of_head = ({}, tints[task]) if in_head else (tints[task], {})
            features = functional_call(pretrained, theta | in_encoder, (inputs,))
            logits = functional_call(heads[task], of_head, (features,))
            keep = sampler(logits.detach(), expert)
            if keep.any():
                torch.autograd.backward(objective(logits[keep], expert[keep]).mean())
        adam.step()  # what nobody taught has no gradient, and stays
        adam.zero_grad(set_to_none=True)
    return lam.detach().clamp(0, 1), tints


def _tint(layer: Layer | None, expert: nn.Module, head: nn.Module) -> Tensors:
    """Return φ_k where it starts: the tinted layer's tensors, by their names in head or encoder."""
    if layer is None:
        return {}
    owner, prefix = head if layer.in_head else expert, f"{layer.path}." if layer.path else ""
    named = owner.named_parameters()
    return {name: p.detach().clone().requires_grad_() for name, p in named if name.startswith(prefix)}
