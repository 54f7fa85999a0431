"""Gradient checkpointing: what a block computes within is computed again in the backward pass.

Of a model of N blocks the activations of one, and N inputs of blocks, are held at a time. Values and
gradients stay what they are: models run in `eval` mode, where nothing is drawn at random.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from fusion_tinting.method.blocks import blocks_of_all
from fusion_tinting.method.tinted_model import TintedNetwork

CLOSE = 1e-2
"""By what share of its size a block's output may differ when it is computed again: GPUs round otherwise."""


def require_blocks(encoder: nn.Module) -> None:
    """Refuse an encoder without blocks, of which nothing would be computed again.

    Args:
        encoder: any.

    Raises:
        ValueError: it has none.
    """
    if not blocks_of_all(encoder):
        raise ValueError(
            "`gradient_checkpointing` computes blocks again, of an `nn.ModuleList` or `nn.Sequential` of "
            "them; the encoder has none. Leave it out."
        )


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let blocks be computed again in backward passes.

    Args:
        blocks: one after another. One that has a `forward` of its own is left as it is.
    """
    with _running(blocks, _again):
        yield


@contextmanager
def computed_twice(blocks: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Let blocks compute all twice; yield a list in which those stand that did not do the same again.

    Args:
        blocks: as `recomputed` takes them; to be run without gradients.
    """
    found: list[nn.Module] = []

    def run(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output, same = _twice(block, *args, **kwargs)
        found.extend([] if same else [block])
        return output

    with _running(blocks, run):
        yield found


@contextmanager
def _running(blocks: Iterable[nn.Module], run: Callable[..., Any]) -> Iterator[None]:
    """Let blocks run by a function; one that stands in several places once."""
    changed = {id(block): block for block in blocks if "forward" not in vars(block)}.values()
    for block in changed:
        block.forward = MethodType(run, block)  # bound, so that a view of the block has its own
    try:
        yield
    finally:
        for block in changed:
            del block.forward


def blocks_in(model: TintedNetwork) -> Iterator[nn.Module]:
    """Yield the blocks of a model, and those of the tints that stand for them.

    Args:
        model: whose blocks those of `blocks_of_all` are.
    """
    layer = model.tinted
    for name in blocks_of_all(model.encoder):
        yield model.encoder.get_submodule(name)
        if layer is not None and not layer.in_head and f"{name}.".startswith(f"{layer.path}."):
            within = name[len(layer.path) + 1 :]
            yield from (tint.get_submodule(within) for tint in model.tint_modules)


def _again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = MethodType(type(block).forward, block)
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _twice(block: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    """Return what a block gives, and whether it gives that again and leaves what it is given as it is."""
    run = MethodType(type(block).forward, block)
    given = [(tensor, tensor._version) for tensor in _tensors([args, kwargs])]
    output = run(*args, **kwargs)
    first = [tensor.clone() for tensor in _tensors(output)]
    if any(tensor._version != before for tensor, before in given):
        return output, False
    try:
        second = _tensors(run(*args, **kwargs))
    except Exception:  # whatever a block raises that is not to be run twice
        return output, False
    return output, len(first) == len(second) and all(map(_alike, first, second))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _alike(one: Tensor, other: Tensor) -> bool:
    one, other = one.float(), other.float()
    size = float(other.nan_to_num(0, 0, 0).abs().sum() / max(1, other.numel()))
    close = partial(torch.allclose, rtol=CLOSE, atol=CLOSE * size, equal_nan=True)
    return one.shape == other.shape and close(one, other)
