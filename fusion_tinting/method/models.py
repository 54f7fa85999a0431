"""Models as they come: taken out of their wrappers, or refused by name before any work is done."""

import copy
import re
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What is merged: in float32; what comes back has the pre-trained model's own again."""

WRAPPERS = {
    "AveragedModel": "module",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "module",
}
"""Class of PyTorch, or of Fabric -> where the model is in it."""

LIBRARIES = {
    "peft.": "layers of an adapter are not merged one by one. Give a `peft.PeftModel`, or what its "
    "`merge_and_unload()` returns",
    "torch.jit.": "it cannot be copied and changed. Give the module that it was made from",
    "torch.distributed.fsdp": "its tensors are spread over processes. Load the full state dict "
    "into a model without FSDP",
    "torch.ao.": "it is quantized. Give the model in floating point",
    "bitsandbytes.": "it is quantized. Give the model in floating point",
    "torch.nn.utils.": "its tensors are computed from others. Remove that from a copy first, by "
    "`torch.nn.utils.parametrize.remove_parametrizations`, `remove_weight_norm`, `remove_spectral_norm` or "
    "`prune.remove`",
}
"""Where a class is defined -> why such a module, or one with such a hook, is refused."""

FACTOR = re.compile(r"(^|[._])lora_(a|b|up|down|embedding_a|embedding_b)\b", re.IGNORECASE)
"""Names of the factors of a matrix: to merge them is not to merge their product."""


_RELEASED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def release(model: nn.Module) -> nn.Module:
    """Say that nobody else uses or changes a model, so that it need not be copied, and return it.

    Args:
        model: loaded for the merge alone.
    """
    _RELEASED.add(model)
    return model


def released(model: nn.Module) -> bool:
    """Return whether a model was released.

    Args:
        model: any.
    """
    return model in _RELEASED


class PlainModels(Mapping[str, nn.Module]):
    """Models of which each is a `plain_model` when it is asked for; each is checked once.

    One that is loaded each time it is asked for must be the same each time: the error names a tensor that
    is not, such as one that no checkpoint holds and that is drawn anew.

    Args:
        what: how an error calls one, such as `The expert`.
        models: task -> model; may load on access.
        form: what is done with a plain model.
    """

    def __init__(
        self,
        what: str,
        models: Mapping[str, nn.Module],
        form: Callable[[nn.Module], nn.Module] = lambda model: model,
    ):
        self._what, self._models, self._form = what, models, form
        self._checked: dict[str, dict[str, list[float]]] = {}

    @property
    def in_memory(self) -> bool:
        """Whether all of them are loaded already."""
        return isinstance(self._models, dict)

    @property
    def stored(self) -> Callable[[str], Mapping[str, Tensor]] | None:
        """What gives the tensors of a model in their files, if they are in any; see `LoadedExperts`."""
        found: Callable[[str], Mapping[str, Tensor]] | None = getattr(self._models, "stored", None)
        return found

    def __getitem__(self, task: str) -> nn.Module:
        what = f"{self._what} `{task}`"
        make = _unwrapped if task in self._checked else plain_model
        model = make(what, self._models[task])
        ends = _ends(model)
        for name, before in self._checked.setdefault(task, ends).items():
            if ends.get(name) != before:
                raise ValueError(
                    f"{what} is another each time it is loaded: `{name}` has changed. Load it once; or see "
                    "whether its checkpoint lacks that tensor, so that it is drawn at random."
                )
        return self._form(model)

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


def _ends(model: nn.Module) -> dict[str, list[float]]:
    """Return the first and the last number of every floating-point parameter."""
    tensors = {
        name: p.detach().reshape(-1) for name, p in model.named_parameters() if p.is_floating_point()
    }
    return {name: flat[[0, -1]].nan_to_num().tolist() for name, flat in tensors.items() if len(flat)}


def plain_model(what: str, model: nn.Module) -> nn.Module:
    """Return a model out of its wrappers; of a peft model a copy with its adapter merged.

    Args:
        what: how an error calls it.
        model: as the user has it; not changed.

    Raises:
        ValueError: no module, or one that cannot be copied or of which some tensor cannot be merged: the
            error names the submodule or tensor, and says what to do.
    """
    model = _unwrapped(what, model)
    ours = set(map(id, model.modules()))
    for name, module in model.named_modules():
        if reason := _reason(module, ours):
            place = f"holds at `{name}`" if name else "is"
            raise ValueError(f"{what} {place} a {type(module).__name__}: {reason}.")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if reason := _reason_of_tensor(name, tensor):
            raise ValueError(f"{what} has a tensor `{name}` that {reason}.")
    _require_own_memory(what, model)
    _require_copies(what, model)
    return model


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model's modules, around the same parameters.

    Args:
        model: whose structure is going to be changed.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def caching(model: nn.Module) -> list[nn.Module]:
    """Return modules that may keep, until `train` is called, what they have computed from their weights.

    LeViT, TinyViT and EfficientFormer do so with their attention biases.

    Args:
        model: of which they are parts.
    """
    return [module for module in model.modules() if type(module).train is not nn.Module.train]


def renew(modules: Iterable[nn.Module]) -> None:
    """Let modules forget what they have computed from weights that are others now.

    Args:
        modules: from `caching`; in `eval` mode, as afterward.
    """
    for module in modules:
        module.train()
        module.eval()


def rebound(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Return a method that an instance holds itself, such as its own `forward`, as the copy's.

    Args:
        value: any attribute; what is bound to nothing is returned as it is.
        old: the instance.
        new: its copy.
    """
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, partial):
        args = (new if argument is old else argument for argument in value.args)
        return partial(rebound(value.func, old, new), *args, **value.keywords)
    return value


def require_module(what: str, value: object) -> None:
    """Refuse a value that is not a module, such as a state dict or a function.

    Args:
        what: how the error calls it.
        value: what was given.

    Raises:
        ValueError: naming `what` and the type of the value.
    """
    if not isinstance(value, nn.Module):
        hint = "; load the state dict into a model" if isinstance(value, Mapping) else ""
        hint = "; make the function the `forward` of one" if callable(value) else hint
        raise ValueError(f"{what} must be a `torch.nn.Module`. Found {type(value).__name__}{hint}.")


def _unwrapped(what: str, model: nn.Module) -> nn.Module:
    require_module(what, model)
    while attribute := _wrapper(model):
        model = getattr(model, attribute)
    adapted = hasattr(model, "merge_and_unload") and _defined(model, ("peft.",))
    return _without_adapter(what, model) if adapted else model


def _wrapper(module: nn.Module) -> str | None:
    """Return the attribute of a wrapper that is the model itself; None of what is no wrapper."""
    names = (WRAPPERS.get(kind.__name__) for kind in type(module).__mro__)
    return next((name for name in names if isinstance(getattr(module, name or "", None), nn.Module)), None)


def _defined(value: object, places: tuple[str, ...]) -> bool:
    return any(kind.__module__.startswith(places) for kind in type(value).__mro__)


def _without_adapter(what: str, model: Any) -> nn.Module:
    try:
        merged: nn.Module = copy.deepcopy(model).merge_and_unload()
    except Exception as error:  # whatever peft raises
        raise ValueError(
            f"{what} is a {type(model).__name__} whose adapter cannot be merged into its weights: {error}"
        ) from error
    return merged


def _reason(module: nn.Module, ours: Container[int]) -> str | None:
    """Return why a module cannot be a part of a model; None if it can."""
    if _wrapper(module):
        return f"give what is in it, its `{_wrapper(module)}`, in its place"
    hooks = module._forward_pre_hooks.values() if isinstance(module._forward_pre_hooks, dict) else ()
    for place, reason in LIBRARIES.items():
        if _defined(module, (place,)) or any(_defined(hook, (place,)) for hook in hooks):
            return reason
    if parametrize.is_parametrized(module):
        return LIBRARIES["torch.nn.utils."]
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return (
            "it has no running statistics, so that what it makes of a sample depends on the others in its "
            "batch. Give it some, with `track_running_stats=True`, or a norm of another kind"
        )
    if module._backward_hooks or module._backward_pre_hooks:
        return "it has a hook in the backward pass, which would change what is learned. Remove that"
    forward = vars(module).get("forward")
    if forward is None or any(id(owner) in ours for owner in _owners(forward)):
        return None
    return (
        "its `forward` was set on the object, so that a copy would go on with the original's weights. Set "
        "`types.MethodType(function, module)`, or give it a class with that `forward`"
    )


def _owners(function: object) -> tuple[object, ...]:
    """Return what a function is bound to, and is bound to a copy of in a copy."""
    if isinstance(function, MethodType):
        return (function.__self__,)
    return function.args if isinstance(function, partial) else ()


def _reason_of_tensor(name: str, tensor: Tensor) -> str | None:
    """Return why a tensor can be no part of a model; None if it can."""
    if is_lazy(tensor):
        return "is not initialized yet, of a lazy module. Pass a batch through the model once"
    if tensor.is_meta:
        return "is on the meta device, without values. Load its checkpoint"
    if hasattr(type(tensor), "__tensor_flatten__") or tensor.is_quantized:
        return f"is a {type(tensor).__name__} of {tensor.dtype}, not a plain tensor. Give the model in full"
    if tensor.layout != torch.strided:
        return f"is {tensor.layout}. Make it dense: `.to_dense()`"
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        return f"is {tensor.dtype}. Convert the model to one of {', '.join(map(str, FLOATS))}"
    if FACTOR.search(name):
        return "is a factor of a matrix: factors are not merged one by one. Merge the adapter first"
    return None


def _require_own_memory(what: str, model: nn.Module) -> None:
    """Refuse parameters of which one lies in the memory of another: to merge one would be to merge both."""
    ends: dict[int, tuple[int, str]] = {}
    parameters = {name: p for name, p in model.named_parameters() if p.numel()}
    for name, p in sorted(parameters.items(), key=lambda item: item[1].data_ptr()):
        last = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
        end, other = ends.get(p.untyped_storage().data_ptr(), (0, name))
        if p.data_ptr() < end:
            raise ValueError(
                f"{what} has tensors `{other}` and `{name}` that share memory. Make them one parameter, or "
                "give one a `clone()`."
            )
        ends[p.untyped_storage().data_ptr()] = p.data_ptr() + (last + 1) * p.itemsize, name


def _require_copies(what: str, model: nn.Module) -> None:
    """Refuse a model of which there can be no copy, or one that shares modules with it."""
    try:
        twins = set(map(id, copied(model).modules()))
    except Exception as error:  # whatever an attribute raises
        raise ValueError(
            f"{what} cannot be copied, and is never changed itself: {_culprit(model)}{error}. Remove that "
            "attribute, or give the class a `__deepcopy__`."
        ) from error
    for name, module in model.named_modules():
        if id(module) in twins and any(True for _ in module.parameters()):
            raise ValueError(
                f"{what} cannot be copied: the `__deepcopy__` of `{name}`, a {type(module).__name__}, "
                "returns the module itself, which would be changed."
            )


def _culprit(model: nn.Module) -> str:
    """Return the name of the first attribute that cannot be copied, as the beginning of a message."""
    known = {id(part): part for part in chain(model.modules(), model.parameters())}
    for name, module in model.named_modules():
        for attribute, value in {**vars(module), **module._buffers}.items():
            try:
                copy.deepcopy(value, dict(known))
            except Exception:  # the same again
                if attribute not in ("_buffers", "_modules", "_parameters"):
                    return f"`{name}.{attribute}`: ".replace("`.", "`")
    return ""
