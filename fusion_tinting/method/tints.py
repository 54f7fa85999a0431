"""The tint φ_k: task k's own trainable copy of ONE layer, and how one is made active."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

from torch import nn

from fusion_tinting.errors import unknown

HEAD, AUTO = "head", "auto"


def resolve_layer(encoder: nn.Module, layer: str | None) -> str | None:
    """The layer to tint, as `head`, `head.<submodule>`, the full name of a submodule of `encoder`, or None.

    Args:
        layer: `head`; `head.<submodule>` where the rest of the head stays as it is, such as a decoder but
            for its last layer; `block:<index>` of the longest ModuleList of equal blocks (negative from the
            end); the exact name of a submodule, or an ending that only one has; None for no tint.

    Raises:
        ValueError: nothing or several submodules match (the candidates are listed), or the one
            that matches has no parameters to train.
    """
    if layer is None or part_of_head(layer) is not None:
        return layer
    if layer.startswith("block:"):
        return _block(encoder, layer.removeprefix("block:"))
    modules = {name: module for name, module in encoder.named_modules() if name}
    trainable = [name for name, m in modules.items() if any(True for _ in m.parameters())]
    matches = [layer] if layer in modules else [n for n in trainable if n.endswith(f".{layer}")]
    if len(matches) > 1:
        raise ValueError(f"`layer={layer}` matches {len(matches)} submodules: {matches}. Name one.")
    if not matches:
        raise unknown("layer", layer, [HEAD, "head.<submodule>", "block:<index>", *trainable])
    if matches[0] not in trainable:
        raise ValueError(f"The layer `{matches[0]}` has no parameters, so it cannot be tinted.")
    return matches[0]


def tintable(encoder: nn.Module) -> list[str]:
    """Every layer that can be tinted, as `resolve_layer` takes it: `head`, `block:<index>` of every block,
    and of the rest of the encoder the largest modules that are one layer (that own parameters themselves,
    such as embeddings, norms and projections), from input to output. No two of them share a parameter."""
    blocks, count = _blocks(encoder)
    return [HEAD, *(f"block:{index}" for index in range(count)), *_single_layers(encoder, "", blocks)]


def make_tints(
    layer: str | None,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
) -> nn.ModuleList:
    """One tint per task, where training starts: the expert's own layer, or the task's head or its part.

    Args:
        layer: as `resolve_layer` returns it; with None the list is empty.

    Raises:
        ValueError: a head without parameters, or without the submodule that is to be tinted.
    """
    if layer is None:
        return nn.ModuleList()
    part = part_of_head(layer)
    layers = (
        experts[task].get_submodule(layer) if part is None else _of_head(task, heads[task], part)
        for task in experts
    )
    return nn.ModuleList(deepcopy(module).float().requires_grad_(True).eval() for module in layers)


def part_of_head(layer: str | None) -> str | None:
    """Of `head.<submodule>` the submodule's name; of `head`, the whole, an empty one; None of others."""
    first, _, part = (layer or "").partition(".")
    return part if first == HEAD else None


@contextmanager
def active(model: nn.Module, layer: str, tint: nn.Module) -> Iterator[None]:
    """Within the context `tint` stands in `model` where its layer `layer` was."""
    parent, _, name = layer.rpartition(".")
    owner = model.get_submodule(parent)
    shared = owner._modules[name]
    owner._modules[name] = tint
    try:
        yield
    finally:
        owner._modules[name] = shared


def _of_head(task: str, head: nn.Module, part: str) -> nn.Module:
    modules = dict(head.named_modules())
    if part not in modules:
        trainable = [name for name, m in modules.items() if name and any(True for _ in m.parameters())]
        raise unknown(f"submodule of the head of `{task}`", part, trainable)
    if not any(True for _ in modules[part].parameters()):
        what = f"The layer `{part}` of the head" if part else "The head"
        raise ValueError(f"{what} of `{task}` has no parameters, so it cannot be tinted.")
    return modules[part]


def _single_layers(module: nn.Module, name: str, blocks: str) -> Iterator[str]:
    """Names of the topmost modules within `module`, itself included, that own parameters and lie outside of
    the blocks. One that also holds the blocks cannot be tinted without them: its children are looked at."""
    if name and name == blocks:
        return
    around_blocks = not name or blocks.startswith(f"{name}.")
    if not around_blocks and any(True for _ in module.parameters(recurse=False)):
        yield name
        return
    for child, part in module.named_children():
        yield from _single_layers(part, f"{name}.{child}" if name else child, blocks)


def _block(encoder: nn.Module, index: str) -> str:
    name, count = _blocks(encoder)
    if not count:
        raise ValueError(
            "`layer=block:…` needs a ModuleList of equal blocks; the encoder has none. Give `layer=head`, "
            "the name of a submodule, or `layer=auto`."
        )
    if not re.fullmatch(r"-?\d+", index) or not -count <= int(index) < count:
        raise ValueError(
            f"`layer=block:{index}` must have an index from {-count} to {count - 1}: "
            f"`{name}` has {count} blocks."
        )
    return f"{name}.{int(index) % count}"


def _blocks(encoder: nn.Module) -> tuple[str, int]:
    """Name and length of the longest ModuleList of equal blocks; without one, an empty name and zero."""
    counts = {
        name: len(blocks)
        for name, blocks in encoder.named_modules()
        if isinstance(blocks, nn.ModuleList) and len({_shape(block) for block in blocks}) == 1
    }
    longest = max(counts, key=counts.get, default="")
    return longest, counts.get(longest, 0)


def _shape(block: nn.Module) -> tuple:
    return type(block), tuple((name, p.shape) for name, p in block.named_parameters())
