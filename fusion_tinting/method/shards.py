"""Tensors of which each of several processes holds some rows, as FSDP2 shards a model.

A merge, Adam and a mean are elementwise, and ⟨∂θ_l, τ_k,l⟩ is a sum: each process does them with the rows
that it holds, and nothing but the (L, K) numbers ∂λ is summed over the processes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process holds but some rows of a tensor: whether it is a `DTensor`.

    Args:
        tensor: any.
    """
    return hasattr(tensor, "_local_tensor")  # the class itself takes seconds to import


def here(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: all of it, if it is not sharded.

    Args:
        tensor: a parameter, its gradient, or another tensor like it.
    """
    return getattr(tensor, "_local_tensor", tensor)


def own_rows(tensor: Tensor, rank: int, count: int) -> Tensor:
    """Return the rows of a tensor that one of several processes holds, as FSDP2 deals them out.

    Each has as many, the last ones fewer or none; what has no dimensions is held by all.

    Args:
        tensor: all of it; of one in a file no other rows are read then.
        rank: which of the processes, from 0.
        count: how many there are.
    """
    if tensor.ndim == 0:
        return tensor
    size = -(-len(tensor) // count)
    return tensor[rank * size : (rank + 1) * size]


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Set a tensor to a value, each process what it holds of it.

    Args:
        tensor: sharded or not.
        value: all of it.
    """
    if is_sharded(tensor):
        mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
        value = own_rows(value, mesh.get_local_rank(), mesh.size())
    here(tensor).copy_(value)


def gathered(
    tensors: Mapping[str, Tensor],
    kept: bool = True,
    aside: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """Return tensors as a whole; those that are sharded gathered in the host's memory, one after another.

    All processes must ask.

    Args:
        tensors: by name.
        kept: whether this process wants them; it gets none otherwise.
        aside: what is done with each that was gathered, such as putting it where it takes no memory.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        if kept:
            found[name] = aside(value) if is_sharded(tensor) else value
    return found


def settle(model: nn.Module) -> None:
    """Drop what a pass that was broken off has gathered, or what is written next would not be seen.

    Args:
        model: sharded or not.
    """
    for module in model.modules():
        getattr(module, "reshard", lambda: None)()


class OwnRows(Mapping[str, Tensor]):
    """Of named tensors the rows that one of several processes holds; see `own_rows`.

    Args:
        tensors: name -> all of it.
        rank: which of the processes, from 0.
        count: how many there are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], rank: int, count: int):
        self._tensors, self._rank, self._count = tensors, rank, count

    def __getitem__(self, name: str) -> Tensor:
        return own_rows(self._tensors[name], self._rank, self._count)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
