"""The pre-trained model θ₀ and the task vectors τ_k = θ_k − θ₀, matched by name."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PRETRAINED = "_pretrained_"
"""Key of θ₀ among the content hashes, beside the task names (FusionBench's own word for it)."""


@dataclass(frozen=True)
class TaskVectors:
    """θ₀ and the K task vectors of L tensors, P numbers in all, in two flat buffers.

    The flat layout is what makes the merge fast: see `fusion_tinting.merging`.

    Attributes:
        tasks: the K task names; row k of `deltas` belongs to `tasks[k]`.
        slots: tensor name -> (start, stop, shape) in the flat buffers; L entries.
        base: θ₀, shape (P,), float32.
        deltas: τ, shape (K, P), float32.
        hashes: sha256 of the merged tensors of θ₀ (key `_pretrained_`) and of every expert.
    """

    tasks: list[str]
    slots: dict[str, tuple[int, int, torch.Size]]
    base: Tensor
    deltas: Tensor
    hashes: dict[str, str]

    @classmethod
    def from_models(cls, pretrained: nn.Module, experts: Mapping[str, nn.Module]) -> "TaskVectors":
        """Subtract `pretrained` from each expert, one expert at a time.

        `experts` may load on access: each is let go before the next is asked for. A parameter that the
        experts share with the pre-trained model (the very same object) has no task vector and is not
        merged; nor are buffers, of which the pre-trained model's stay.

        Raises:
            ValueError: no expert; or a tensor missing, added, of another shape or dtype, or not
                finite, named with its task.
        """
        if not experts:
            raise ValueError("`experts` is empty: Model Tinting needs at least one expert.")
        if PRETRAINED in experts:
            raise ValueError(f"`{PRETRAINED}` is no task: it is the name of the pre-trained model.")
        shared = _shared(pretrained, experts[next(iter(experts))])
        reference = {n: p.detach() for n, p in pretrained.named_parameters() if n not in shared}
        slots = _slots(reference)
        base = _flatten(reference, slots, "the pre-trained model")
        deltas = torch.empty(len(experts), base.numel(), device=base.device)
        hashes = {PRETRAINED: content_hash(reference)}
        for row, task in zip(deltas, experts, strict=True):
            expert = experts[task]
            if _shared(pretrained, expert) != shared:
                raise ValueError(
                    f"The expert `{task}` shares other parameter objects with the pre-trained model than "
                    "the expert before it. Give every expert its own copy of what was fine-tuned."
                )
            _warn_of_buffers(task, pretrained, expert)
            tensors = {n: t.detach() for n, t in expert.named_parameters() if n not in shared}
            _check_same_architecture(task, reference, tensors)
            _flatten(tensors, slots, f"the expert `{task}`", out=row)
            row -= base
            hashes[task] = content_hash(tensors)
            del expert, tensors  # before the next one is loaded
        return cls(list(experts), slots, base, deltas, hashes)

    @property
    def names(self) -> list[str]:
        """The L tensor names, in order."""
        return list(self.slots)

    def to(self, device: torch.device | str) -> "TaskVectors":
        """The same task vectors on another device."""
        base, deltas = self.base.to(device), self.deltas.to(device)
        return TaskVectors(self.tasks, self.slots, base, deltas, self.hashes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut `flat`, shape (..., P), into named tensors that share its memory."""
        lead = flat.shape[:-1]
        return {
            name: flat[..., start:stop].view(*lead, *shape)
            for name, (start, stop, shape) in self.slots.items()
        }


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes; independent of the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _shared(pretrained: nn.Module, expert: nn.Module) -> set[str]:
    """Names of parameters that are one object in both, and of those that are not floating-point."""
    theirs = dict(expert.named_parameters())
    ours = pretrained.named_parameters()
    return {name for name, p in ours if theirs.get(name) is p or not p.is_floating_point()}


def _warn_of_buffers(task: str, pretrained: nn.Module, expert: nn.Module) -> None:
    buffers = dict(expert.named_buffers())
    for name, buffer in pretrained.named_buffers():
        if buffer.is_floating_point() and name in buffers and not torch.equal(buffer, buffers[name]):
            warnings.warn(
                f"The buffer `{name}` of the expert `{task}` differs from the pre-trained model's. Buffers "
                "(batch-norm statistics) are not merged: the shared encoder keeps the pre-trained ones.",
                stacklevel=4,
            )
            return


def _slots(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int, torch.Size]]:
    slots, start = {}, 0
    for name, tensor in tensors.items():
        slots[name] = (start, start + tensor.numel(), tensor.shape)
        start += tensor.numel()
    if not slots:
        raise ValueError("The pre-trained model has no floating-point parameter to merge.")
    return slots


def _flatten(tensors: Mapping[str, Tensor], slots: dict, owner: str, out=None) -> Tensor:
    """Copy named tensors into one float32 row, refusing any that is not finite."""
    if out is None:
        stop = max(stop for _, stop, _ in slots.values())
        out = torch.empty(stop, device=next(iter(tensors.values())).device)
    for name, (start, stop, _) in slots.items():
        out[start:stop].copy_(tensors[name].reshape(-1))
    if not torch.isfinite(out).all():
        bad = [n for n, (a, b, _) in slots.items() if not torch.isfinite(out[a:b]).all()]
        raise ValueError(
            f"Tensor `{bad[0]}` of {owner} holds NaN or infinite values ({len(bad)} such "
            f"tensor(s) in all). Check that checkpoint: it cannot be merged."
        )
    return out


def _check_same_architecture(task: str, reference: dict, tensors: dict) -> None:
    missing = [name for name in reference if name not in tensors]
    extra = [name for name in tensors if name not in reference]
    if missing or extra:
        raise ValueError(
            f"The expert `{task}` is not of the pre-trained model's architecture: "
            f"missing tensors {_some(missing)}, additional tensors {_some(extra)}."
        )
    for name, tensor in reference.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(
                f"Tensor `{name}` of the expert `{task}` is {tuple(found.shape)} {found.dtype}; "
                f"the pre-trained model's is {tuple(tensor.shape)} {tensor.dtype}."
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{names[:3]}{more}" if names else "none"
