"""Which tensors are merged: an expert's of θ₀'s names, where the rest of it computes as θ₀'s does."""

from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, nn

from fusion_tinting.errors import abbreviate

COUNTER = "num_batches_tracked"
"""Of batch norms; nothing is computed from it in evaluation."""

SILENT = ("Identity", "DropPath", "StochasticDepth", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d")
"""Classes that do nothing in evaluation."""

NO_MATTER = (
    "training", "drop", "checkpoint", "momentum", "padding_idx", "name", "path", "label", "cache", "step",
    "device", "dtype", "seed", "version", "vocab_size", "forward",
)  # fmt: skip
"""Words in the names of attributes that may differ."""


def merged_tensors(pretrained: nn.Module, task: str, expert: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of θ₀ that are merged: floating-point parameters that the expert does not share.

    Args:
        pretrained: θ₀.
        task: the expert's.
        expert: fine-tuned on it.

    Raises:
        ValueError: an expert that is the pre-trained model itself; or nothing to merge.
    """
    theirs = dict(expert.named_parameters(remove_duplicate=False))
    own = {name: p for name, p in pretrained.named_parameters() if theirs.get(name) is not p}
    if theirs and all(name in theirs and _statistic(name, p, theirs[name]) for name, p in own.items()):
        raise ValueError(
            f"The expert `{task}` is the pre-trained model itself: all their parameters are the same "
            "objects. Give the expert a copy of its own."
        )
    merged = {name: p.detach() for name, p in own.items() if p.is_floating_point()}
    if not merged:
        raise ValueError("The pre-trained model has no floating-point parameter to merge.")
    return merged


def matched(
    pretrained: nn.Module, task: str, expert: nn.Module, reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of an expert that are merged, by the names of θ₀'s.

    One that two of the expert's layers share, where θ₀ has two, has both names.

    Args:
        pretrained: θ₀.
        task: the expert's.
        expert: fine-tuned on it.
        reference: the tensors of θ₀ that are merged.

    Raises:
        ValueError: an expert that shares other parameters with θ₀ than `reference` says, or is of another
            architecture: in its tensors, their shapes or ties, in what is not merged (integers, buffers),
            in hooks, or in modules without tensors.
    """
    if merged_tensors(pretrained, task, expert).keys() != reference.keys():
        raise ValueError(
            f"The expert `{task}` shares other parameter objects with the pre-trained model than "
            "the expert before it. Give every expert its own copy of what was fine-tuned."
        )
    theirs = {name: p.detach() for name, p in expert.named_parameters(remove_duplicate=False)}
    for difference in _differences(f"expert `{task}`", pretrained, expert, theirs):
        raise ValueError(difference)
    return {name: theirs[name] for name in reference}


def _differences(
    who: str, pretrained: nn.Module, expert: nn.Module, theirs: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yield what of an expert cannot be merged."""
    yield from _other_tensors(who, pretrained, expert, theirs)
    yield from _other_ties(who, pretrained, theirs)
    yield from _other_buffers(who, pretrained, expert)
    yield from _other_modules(who, pretrained, expert)


def _other_tensors(
    who: str, pretrained: nn.Module, expert: nn.Module, theirs: Mapping[str, Tensor]
) -> Iterator[str]:
    ours, tied = (
        dict(pretrained.named_parameters()),
        dict(pretrained.named_parameters(remove_duplicate=False)),
    )
    missing = [name for name in ours if name not in theirs]
    extra = [name for name, _ in expert.named_parameters() if name not in tied]
    if missing or extra:
        yield (
            f"The {who} is not of the pre-trained model's architecture: "
            f"missing tensors {abbreviate(missing)}, additional tensors {abbreviate(extra)}."
        )
    for name, p in ours.items():
        other = theirs[name]
        if other.shape != p.shape or other.is_floating_point() != p.is_floating_point():
            yield (
                f"Tensor `{name}` of the {who} is {tuple(other.shape)} {other.dtype}; "
                f"the pre-trained model's is {tuple(p.shape)} {p.dtype}."
            )
        if not p.is_floating_point() and not _equal(p, other):
            yield (
                f"The {who} has another `{name}` than the pre-trained model, of {p.dtype}. Only "
                "floating-point parameters are merged: convert both models, or give them the same."
            )


def _other_ties(who: str, pretrained: nn.Module, theirs: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield where θ₀ has one tensor in two places and the expert two of unlike values."""
    first: dict[int, str] = {}
    for name, p in pretrained.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(p), name)
        if known != name and (name not in theirs or not _equal(theirs[known], theirs[name])):
            yield (
                f"The {who} has other values in `{name}` than in `{known}`, which are one tensor in the "
                "pre-trained model. Give that two: `module.weight = nn.Parameter(module.weight.clone())`."
            )


def _other_buffers(who: str, pretrained: nn.Module, expert: nn.Module) -> Iterator[str]:
    buffers = dict(expert.named_buffers())
    for name, buffer in pretrained.named_buffers():
        if name in buffers and not name.endswith(COUNTER) and not _equal(buffer, buffers[name]):
            yield (
                f"The {who} has another buffer `{name}` than the pre-trained model. Only parameters are "
                "merged: make one of it in all models (`fusion_tinting.tint` does so with what PyTorch's "
                "batch norms count), or give them the same."
            )


def _other_modules(who: str, pretrained: nn.Module, expert: nn.Module) -> Iterator[str]:
    modules = dict(expert.named_modules())
    for name, module in pretrained.named_modules():
        for what, (ours, theirs) in _unlike(module, modules.get(name, module)):
            yield (
                f"The {who} has {what} {theirs} at `{name or type(module).__name__}`; the pre-trained "
                f"model has {ours}. Only tensors are merged: all models must compute alike."
            )


def _unlike(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[str, tuple[object, object]]]:
    """Yield (what, what it is of each) where two modules compute otherwise than by their tensors."""
    if _hooks(ours) != _hooks(theirs):
        yield "the hooks", (_hooks(ours) or "none", _hooks(theirs) or "none")
    kinds = type(ours).__qualname__, type(theirs).__qualname__
    if set(kinds) <= set(SILENT):
        return
    if kinds[0] != kinds[1]:
        yield "the class", kinds
    constants = _constants(theirs)
    for key, value in _constants(ours).items():
        if value != constants.get(key, value):
            yield f"`{key}`", (value, constants[key])


def _constants(module: nn.Module) -> dict[str, object]:
    """Return the attributes by which a module computes, but for those that do nothing in evaluation."""
    return {
        key: getattr(value, "__qualname__", value)
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str, tuple, FunctionType, BuiltinFunctionType))
        and not key.startswith("_")
        and not any(word in key for word in NO_MATTER)
    }


def _hooks(module: nn.Module) -> list[str]:
    """Return the names of the functions that see or change what a module computes."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks]


def _statistic(name: str, ours: Tensor, theirs: Tensor) -> bool:
    """Return whether a parameter is a copy of one batch norm's statistics, made for each of two models."""
    return name.endswith((".running_mean", ".log_variance")) and torch.equal(ours, theirs)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether tensors are equal, but for the rounding of the coarser dtype; NaN is NaN's equal."""
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == theirs.dtype or not (ours.is_floating_point() and theirs.is_floating_point()):
        return bool((ours == theirs.to(ours.device)).logical_or(ours.isnan() & theirs.isnan()).all())
    rounding = max(torch.finfo(tensor.dtype).eps for tensor in (ours, theirs))
    ours, theirs = ours.double(), theirs.to(ours.device).double()
    return torch.allclose(ours, theirs, rtol=rounding, atol=rounding, equal_nan=True)
