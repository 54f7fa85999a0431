"""The blocks of an encoder, which `block:<index>` names: found by how models are built."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import nn


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another.

    Attributes:
        blocks: name -> block, from input to output.
        alike: whether they are of one class, and no module of another stands between them.
    """

    blocks: dict[str, nn.Module]
    alike: bool = True

    @property
    def size(self) -> tuple[bool, bool, int]:
        """What the blocks have more of than an encoder's other lists, such as those of its outputs."""
        return all(map(_composed, self.blocks.values())), self.alike, len(self.blocks)

    @property
    def shapes(self) -> frozenset[object]:
        """The different shapes of its blocks' parameters."""
        return frozenset(
            tuple((name, p.shape) for name, p in block.named_parameters()) for block in self.blocks.values()
        )


def blocks_of(encoder: nn.Module) -> list[str]:
    """Return the names of an encoder's blocks, from input to output; an empty list without any.

    They are the elements of the longest `nn.ModuleList`, or `nn.Sequential` of composed modules, that
    stands in no other such list: of a mixture of experts its layers and not one layer's experts, of an
    encoder and a decoder of one length the encoder's. In their parameters they may differ, as the first
    often does. Where blocks of several widths stand in stages (ResNet, ConvNeXt, Swin), they are all blocks
    of all stages.

    Args:
        encoder: whose blocks are listed.
    """
    return list(max(_stacks("", encoder), key=lambda stack: stack.size, default=Stack({})).blocks)


def blocks_of_all(encoder: nn.Module) -> list[str]:
    """Return the names of all blocks, of an encoder and a decoder too.

    Args:
        encoder: whose blocks are listed.
    """
    stacks = [stack for stack in _stacks("", encoder) if all(map(_composed, stack.blocks.values()))]
    return [name for stack in stacks for name in stack.blocks] or blocks_of(encoder)


def _stacks(name: str, module: nn.Module) -> Iterator[Stack]:
    """Yield the stacks within a module, itself included, that stand in no other."""
    own = _stack(name, module)
    if own is not None:
        lists = all(isinstance(block, (nn.ModuleList, nn.Sequential)) for block in own.blocks.values())
        yield _in_stages([_inner(*block) for block in own.blocks.items()], lists) or own
        if own.alike:
            return
    parts = {path: part for path, part in _children(name, module) if own is None or path not in own.blocks}
    sequences = [_stack(path, part) for path, part in parts.items() if isinstance(part, nn.Sequential)]
    if stages := _in_stages([stack for stack in sequences if stack is not None and stack.size[0]]):
        yield stages
    for path, part in parts.items():
        yield from _stacks(path, part)


def _stack(name: str, module: nn.Module) -> Stack | None:
    """Return the blocks that a list consists of; None where it has none, or is no list.

    Every element of a `ModuleList` is one. Of an `nn.Sequential` those are that consist of modules: layers
    in a row are no blocks. Where these are of several classes, the most frequent one counts, but for
    `nn.Sequential` itself.
    """
    parts = {path: part for path, part in _children(name, module) if any(True for _ in part.parameters())}
    if isinstance(module, nn.ModuleList):
        return Stack(parts, len(set(map(type, parts.values()))) == 1) if parts else None
    if not isinstance(module, nn.Sequential):
        return None
    composed = {path: part for path, part in parts.items() if _composed(part)}
    if not composed and not any(map(_of_pytorch, parts.values())):
        composed = parts  # blocks that own all their parameters themselves
    kinds = Counter(map(type, composed.values()))
    if len(kinds) == 1 and (len(composed) > 1 or not any(map(_of_pytorch, composed.values()))):
        return Stack(composed)
    several = [
        kind for kind, count in kinds.most_common() if count > 1 and not issubclass(kind, nn.Sequential)
    ]
    return Stack({p: m for p, m in composed.items() if type(m) is several[0]}, False) if several else None


def _inner(name: str, block: nn.Module) -> Stack | None:
    """Return the blocks that a block, if it is a stage, consists of: itself a list, or around one.

    A convolution with its norm and activation, in an `nn.Sequential`, is no block of a stage.
    """
    lists = (_stack(name, block), *(_stack(*part) for part in _children(name, block)))
    stacks = [stack for stack in lists if stack is not None and stack.alike and stack.size[0]]
    stacks = [s for s in stacks if not any(isinstance(b, nn.Sequential) for b in s.blocks.values())]
    return max(stacks, key=lambda stack: stack.size, default=None)


def _in_stages(stages: Sequence[Stack | None], lists: bool = False) -> Stack | None:
    """Return the blocks of all stages; None of what is none: stages differ in width, or are lists."""
    stacks = [stack for stack in stages if stack is not None and stack.alike]
    if len(stacks) < len(stages) or not (lists or len({stack.shapes for stack in stacks}) > 1):
        return None
    return Stack(reduce(dict.__or__, (stack.blocks for stack in stacks)))


def _children(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name in the encoder, child), also where one child has several names."""
    for child, part in module._modules.items():
        if part is not None:
            yield f"{name}.{child}".removeprefix("."), part


def _composed(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _of_pytorch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
