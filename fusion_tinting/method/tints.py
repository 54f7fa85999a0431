"""The tint φ_k: task k's own trainable copy of ONE layer, and the model with a tint in its place."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from operator import is_
from types import MethodType

from torch import nn

from fusion_tinting.errors import unknown
from fusion_tinting.method.blocks import blocks_of
from fusion_tinting.method.models import rebound

HEAD, AUTO = "head", "auto"
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
"""Where torch keeps the hooks of a module that see or change what it computes."""
BOUND = {MethodType, partial}
"""What an instance may hold that runs with the instance, such as a `forward` of its own."""


@dataclass(frozen=True)
class Layer:
    """The layer that is tinted, resolved once.

    Attributes:
        in_head: whether it belongs to each task's head, and not to the encoder.
        path: name of the submodule of the head, empty for the whole head; or of the encoder.
    """

    in_head: bool
    path: str

    @property
    def name(self) -> str:
        """`head`, `head.<submodule>`, or the full name of the encoder's submodule."""
        return ".".join(filter(None, (HEAD, self.path))) if self.in_head else self.path


def resolve_layer(encoder: nn.Module, name: str | None) -> Layer | None:
    """Return the layer that a name stands for, which must not be the first of several that share a tensor.

    Args:
        encoder: of which the layer may be a part.
        name: as `find_layer` takes it.

    Raises:
        ValueError: as `find_layer`; or a tensor that is merged under its name in this layer, and that
            another has too.
    """
    layer = find_layer(encoder, name)
    if layer is not None and not layer.in_head and (sharer := _sharer(encoder, layer.path)):
        raise ValueError(
            f"`layer={layer.path}` shares a tensor with `{sharer}`, where its tint would not be used. Tint "
            "that layer, which then gets a tensor of its own, or one that shares none."
        )
    return layer


def find_layer(encoder: nn.Module, name: str | None) -> Layer | None:
    """Return the layer that a name stands for; None for no tint.

    Args:
        encoder: of which the layer may be a part.
        name: `head`; `head.<submodule>` where the rest of the head stays as it is, such as a decoder but
            for its last layer; `block:<index>` of the blocks that `blocks.blocks_of` finds (negative from
            the end); the exact name of a submodule, or an ending that only one has; None for no tint.

    Raises:
        ValueError: nothing or several submodules match (the candidates are listed), or the one
            that matches has no parameters to train.
    """
    if name is None:
        return None
    first, _, rest = name.partition(".")
    if first == HEAD:
        return Layer(True, rest)
    if name.startswith("block:"):
        return Layer(False, _block(encoder, name.removeprefix("block:")))
    modules = {path: module for path, module in encoder.named_modules() if path}
    trainable = [path for path, module in modules.items() if any(True for _ in module.parameters())]
    matches = [name] if name in modules else [path for path in trainable if path.endswith(f".{name}")]
    if len(matches) > 1:
        raise ValueError(f"`layer={name}` matches {len(matches)} submodules: {matches}. Name one.")
    if not matches:
        raise unknown("layer", name, [HEAD, "head.<submodule>", "block:<index>", *trainable])
    if matches[0] not in trainable:
        raise ValueError(f"The layer `{matches[0]}` has no parameters, so it cannot be tinted.")
    return Layer(False, matches[0])


def tintable(encoder: nn.Module) -> list[str]:
    """Return the names of every layer that can be tinted, as `resolve_layer` takes them.

    These are `head`, `block:<index>` of every block, and of the rest of the encoder the largest modules
    that are one layer (that own parameters themselves, such as embeddings, norms and projections), from
    input to output. No two of them share a parameter, unless a third one is merged in the name of both.

    Args:
        encoder: whose layers are listed.
    """
    blocks = blocks_of(encoder)
    found = {f"block:{index}": path for index, path in enumerate(blocks)}
    found |= {path: path for path in _single_layers(encoder, "", blocks)}
    return [HEAD, *(name for name, path in found.items() if _sharer(encoder, path) is None)]


def make_tints(
    layer: Layer | None,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
) -> nn.ModuleList:
    """Return one tint per task, where training starts: the expert's own layer, or the task's head.

    Args:
        layer: as `resolve_layer` returns it; with None the list is empty.
        experts: task -> encoder.
        heads: task -> head.

    Raises:
        ValueError: a head without parameters, or without the submodule that is to be tinted.
    """
    if layer is None:
        return nn.ModuleList()
    layers = (
        _of_head(task, heads[task], layer.path)
        if layer.in_head
        else experts[task].get_submodule(layer.path)
        for task in experts
    )
    tints = nn.ModuleList(deepcopy(module).float().eval() for module in layers)
    for parameter in tints.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return tints


def share_precision(layer: nn.Module, tints: Iterable[nn.Module]) -> None:
    """Give buffers of tints, which are not trained, the precision of the layer's own.

    Args:
        layer: of the shared encoder, or of a head.
        tints: of that layer.
    """
    own = dict(layer.named_buffers())
    for tint in tints:
        for name, buffer in tint.named_buffers():
            buffer.data = buffer.to(own[name].dtype if name in own else buffer.dtype)


def share_hooks(layer: nn.Module, tints: Iterable[nn.Module]) -> None:
    """Let what is hooked to a layer, now or when it runs, see the tints that stand in for it.

    Libraries hook models of their own accord, such as transformers where hidden states are asked for.

    Args:
        layer: of the shared encoder, or of a head.
        tints: of that layer.
    """
    for tint in tints:
        twins = dict(tint.named_modules())
        for name, part in layer.named_modules():
            if name in twins:
                twins[name].__dict__.update({hooks: vars(part)[hooks] for hooks in HOOKS})


@contextmanager
def view(model: nn.Module, path: str, tint: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` with `tint` where its submodule `path` is; everything else is shared with `model`.

    The modules on the way to it are shallow copies, so that nothing stands in `model` that is a task's own:
    threads may ask for several tasks at a time, and gradient checkpointing computes again what it has
    computed. What a module of the view sets of itself when it runs, `model` has afterward.

    Args:
        model: the encoder or head.
        path: name of the submodule; empty for the whole model.
        tint: what stands there in the view.
    """
    if not path:
        yield tint
        return
    names = path.split(".")
    shared = [model]
    for name in names[:-1]:
        shared.append(shared[-1].get_submodule(name))
    copies: list[nn.Module] = [object.__new__(type(module)) for module in shared]
    started = []
    for module, copy, name, child in zip(shared, copies, names, [*copies[1:], tint], strict=True):
        attributes = {**vars(module), "_modules": {**module._modules, name: child}}
        if not BOUND.isdisjoint(map(type, attributes.values())):
            attributes = {key: rebound(value, module, copy) for key, value in attributes.items()}
        started.append(attributes)
        copy.__dict__ = dict(attributes)
    yield copies[0]
    for module, copy, before in zip(shared, copies, started, strict=True):
        if len(before) != len(vars(copy)) or not all(map(is_, before.values(), vars(copy).values())):
            vars(module).update({k: v for k, v in vars(copy).items() if before.get(k, before) is not v})


def _of_head(task: str, head: nn.Module, part: str) -> nn.Module:
    modules = dict(head.named_modules())
    if part not in modules:
        trainable = [name for name, m in modules.items() if name and any(True for _ in m.parameters())]
        raise unknown(f"submodule of the head of `{task}`", part, trainable)
    if not any(True for _ in modules[part].parameters()):
        what = f"The layer `{part}` of the head" if part else "The head"
        raise ValueError(
            f"{what} of `{task}` has no parameters, so it cannot be tinted. Set `layer`: the name of a "
            "submodule, `auto`, or None for λ alone."
        )
    module: nn.Module = modules[part]
    return module


def _single_layers(module: nn.Module, name: str, blocks: Sequence[str]) -> Iterator[str]:
    """Yield the topmost modules within `module`, itself included, that own parameters and are no blocks.

    One that also holds the blocks cannot be tinted without them: its children are looked at.
    """
    if name in blocks:
        return
    around_blocks = not name or any(block.startswith(f"{name}.") for block in blocks)
    if not around_blocks and any(True for _ in module.parameters(recurse=False)):
        yield name
        return
    for child, part in module.named_children():
        yield from _single_layers(part, f"{name}.{child}" if name else child, blocks)


def _sharer(encoder: nn.Module, path: str) -> str | None:
    """Return the name, outside of a layer, of a tensor that is merged under its name inside."""
    inside = f"{path}."
    own = {id(p) for name, p in encoder.named_parameters() if name.startswith(inside)}
    names = (name for name, p in encoder.named_parameters(remove_duplicate=False) if id(p) in own)
    return next((name for name in names if not name.startswith(inside)), None)


def _block(encoder: nn.Module, index: str) -> str:
    blocks = blocks_of(encoder)
    count = len(blocks)
    if not blocks:
        raise ValueError(
            "`layer=block:…` needs a ModuleList or a Sequential of blocks; the encoder has none. Give "
            "`layer=head`, the name of a submodule, or `layer=auto`."
        )
    if not re.fullmatch(r"-?\d+", index) or not -count <= int(index) < count:
        raise ValueError(
            f"`layer=block:{index}` must have an index from {-count} to {count - 1}: the encoder has "
            f"{count} blocks, `{blocks[0]}` to `{blocks[-1]}`."
        )
    return blocks[int(index)]
