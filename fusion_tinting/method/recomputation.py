"""Gradient checkpointing: what a block computes within is computed again in the backward pass.

Of a model of N blocks the activations of one, and N inputs of blocks, are held at a time. Values and
gradients stay what they are: models run in `eval` mode, where nothing is drawn at random.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusion_tinting.method.blocks import blocks_of_all
from fusion_tinting.method.tinted_model import TintedNetwork


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
    changed = [block for block in blocks if "forward" not in vars(block)]
    for block in changed:
        block.forward = MethodType(_again, block)  # bound, so that a view of the block has its own
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
