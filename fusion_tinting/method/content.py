"""Hashes of what tensors, modules and other values are, equal in every process."""

import hashlib
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (str, bytes, int, float, complex, type(None), range, slice, Enum, torch.dtype, torch.Size)
"""What its `repr` says whole."""

LIBRARY = "transformers"
"""Its objects keep private attributes, and these others, of how and whence they were loaded."""
OF_LOADING = {
    "name_or_path",
    "dtype",
    "transformers_version",
    "model_type",
    "architectures",
    "hf_device_map",
}
WITHOUT_EFFECT = {*vars(nn.Module()), "gradient_checkpointing", "generation_config", "_is_hf_initialized"}
"""Attributes that are looked at in another way, or that change no output."""
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


HALVES = (torch.float16, torch.bfloat16)


def content_hash(tensors: Mapping[str, Any]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes; independent of the order of the names.

    Tensors of half precision count by their values in float32, so that a checkpoint is the same however it
    is loaded.

    Args:
        tensors: by name; what else a `state_dict` may hold is left out.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, value in tensors.items() if isinstance(value, Tensor)):
        digest.update(f"{name} ".encode())
        _update(digest, _full(tensors[name]))
    return digest.hexdigest()


def value_hash(value: object, known: Iterable[Tensor] = ()) -> str:
    """Return the sha256 of a value: of a module its class, tensors, attributes, hooks and own `forward`.

    Tensors count by their bytes, those of half precision in float32; containers, configurations and other
    objects by what is in them; functions by their code, defaults and what they close over; paths and caches
    not at all.

    Args:
        value: anything.
        known: tensors whose bytes are hashed elsewhere; of these only dtype and shape enter.
    """
    return _Walk(known).digest(value).hex()


class _Walk:
    """Hashes values by what is in them; each object once, so that circles end."""

    def __init__(self, known: Iterable[Tensor]):
        self._known = {id(tensor) for tensor in known}
        self._seen: dict[int, tuple[object, bytes]] = {}  # with the object, or its id might be used again

    def digest(self, value: Any) -> bytes:
        if isinstance(value, PLAIN):
            return _digest(type(value).__name__, repr(value))
        if id(value) not in self._seen:
            self._seen[id(value)] = value, b"itself"
            try:
                self._seen[id(value)] = value, self._look(value)
            except Exception:  # an object that cannot be looked into; what it does, `run.answers` asks
                self._seen[id(value)] = value, _digest(type(value).__qualname__)
        return self._seen[id(value)][1]

    def _look(self, value: Any) -> bytes:
        for kinds, look in self._kinds:
            if isinstance(value, kinds):
                return _digest(type(value).__name__, *look(self, value))
        if callable(getattr(value, "tobytes", None)):  # arrays and pictures
            facts = [getattr(value, name, None) for name in ("dtype", "shape", "mode", "size")]
            addresses = getattr(facts[0], "hasobject", False)
            return _digest(str(facts), self.digest(value.tolist()) if addresses else value.tobytes())
        attributes = list(self._attributes(value))
        said = "" if attributes else re.sub("0x[0-9a-fA-F]+", "", repr(value))  # without its address
        return _digest(type(value).__name__, said, *attributes)

    def _tensor(self, value: Tensor) -> Iterable[bytes]:
        digest = hashlib.sha256()
        _update(digest, _full(value), without_bytes=id(value) in self._known)
        return [digest.digest()]

    def _mapping(self, value: Mapping[Any, Any]) -> Iterable[bytes]:
        return sorted(self.digest(key) + self.digest(entry) for key, entry in value.items())

    def _sequence(self, value: Iterable[Any]) -> Iterable[bytes]:
        return map(self.digest, value)

    def _set(self, value: Iterable[Any]) -> Iterable[bytes]:
        return sorted(map(self.digest, value))

    def _module(self, value: nn.Module) -> Iterable[bytes]:
        for members in (value._parameters, value._buffers, value._modules):
            for name, member in members.items():
                yield _digest(name, self.digest(member))
        yield from (self.digest(list(getattr(value, hooks).values())) for hooks in HOOKS)
        forward: Any = type(value).forward
        own = getattr(forward, "__qualname__", "") == f"{type(value).__qualname__}.forward"
        yield self.digest(_bound(forward) if own else forward)  # else inherited, or put there later
        yield from self._attributes(value)

    def _function(self, value: FunctionType) -> Iterable[bytes]:
        yield _digest(value.__qualname__)
        yield from map(self.digest, _bound(value))
        if not _is_library(value.__module__):
            yield from map(self.digest, (value.__code__, _read(value)))

    def _code(self, value: CodeType) -> Iterable[bytes]:
        return [value.co_code, *map(self.digest, (value.co_names, value.co_consts))]

    def _cell(self, value: CellType) -> Iterable[bytes]:
        try:
            return [self.digest(value.cell_contents)]
        except ValueError:  # empty
            return []

    def _method(self, value: MethodType) -> Iterable[bytes]:
        return [self.digest(value.__func__), self.digest(value.__self__)]

    def _partial(self, value: "partial[Any]") -> Iterable[bytes]:
        return map(self.digest, (value.func, value.args, value.keywords))

    def _class(self, value: type) -> Iterable[bytes]:
        return [_digest(value.__qualname__)]

    def _python_module(self, value: ModuleType) -> Iterable[bytes]:
        return [_digest(value.__name__)]

    def _nothing(self, _: object) -> Iterable[bytes]:
        return []

    def _attributes(self, value: Any) -> Iterable[bytes]:
        """Yield what an object's attributes are, in the order of their names."""
        attributes = getattr(value, "__dict__", {})
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        named = {**attributes, **{name: getattr(value, name) for name in slots if hasattr(value, name)}}
        loaded = type(value).__module__.partition(".")[0] == LIBRARY
        for name in sorted(map(str, named)):
            skipped = name in OF_LOADING or name.startswith("_") if loaded else False
            if not (skipped or name in WITHOUT_EFFECT or "cache" in name):
                yield _digest(name, self.digest(named[name]))

    _kinds: Sequence[tuple[Any, Callable[["_Walk", Any], Iterable[bytes]]]] = (
        (Tensor, _tensor),
        (nn.Module, _module),
        (Mapping, _mapping),
        ((list, tuple), _sequence),
        ((set, frozenset), _set),
        (FunctionType, _function),
        (CodeType, _code),
        (CellType, _cell),
        (MethodType, _method),
        (partial, _partial),
        (PurePath, _nothing),
        (type, _class),
        (ModuleType, _python_module),
    )


def libraries_of(modules: Iterable[nn.Module]) -> dict[str, str]:
    """Return library -> version, of those that the classes of modules and of their submodules come from.

    Other versions of these may give the same model other attributes.

    Args:
        modules: models and heads.
    """
    kinds = {type(part) for module in modules for part in module.modules()}
    names = {kind.__module__.partition(".")[0] for kind in kinds if _is_library(kind.__module__)}
    return {"python": ".".join(platform.python_version_tuple()[:2])} | {
        name: _version(name) for name in sorted(names | {"torch"})
    }


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(library), "__version__", "unknown"))


def _is_library(module: str | None) -> bool:
    """Return whether a module belongs to Python, to this package or to another that is installed."""
    name = str(module).partition(".")[0]
    file = str(getattr(sys.modules.get(name), "__file__", None) or "")
    ours = name == __name__.partition(".")[0]
    return ours or "-packages" in file or (name in sys.stdlib_module_names and name != "__main__")


def _bound(function: Any) -> list[Any]:
    """Return what a function holds beside its code."""
    held = ("__defaults__", "__kwdefaults__", "__closure__")
    return [getattr(function, name, None) for name in held]


def _read(function: FunctionType) -> dict[str, Any]:
    """Return the globals that a function reads, but for what is imported."""
    values = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    kinds = (*PLAIN, Tensor, list, tuple, set, dict)
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, kinds) or getattr(value, "__module__", None) == function.__module__
    }


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALVES else tensor


def _update(digest: Any, tensor: Tensor, without_bytes: bool = False) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    if without_bytes or tensor.is_meta:
        return
    dense = tensor.detach().cpu()
    dense = dense.dequantize() if dense.is_quantized else dense
    dense = dense if dense.layout == torch.strided else dense.to_dense()
    plain = dense.resolve_conj().resolve_neg().contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _digest(*parts: str | bytes) -> bytes:
    """Return the sha256 of parts, each with its length, so that they cannot run into each other."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()
