"""Reading pickles of whole modules whose classes are gone, moved or changed since they were written."""

import pickle
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

FOREIGN = ("src", "open_clip", "clip", "torchvision", "fusion_bench")
"""Packages whose classes in a pickle are replaced: gone, moved or changed since it was written."""


def unpickled(path: Path) -> Any:
    """Load the object in a pickle, in which classes of `FOREIGN` packages are stand-ins. Runs its code.

    Args:
        path: of the file.

    Raises:
        ValueError: no pickle, or one that needs a module that is not here.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
        except RuntimeError:  # written by pickle, not by torch
            with open(path, "rb") as file:
                return _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ImportError, AttributeError) as error:
        raise ValueError(f"`{path}` is no checkpoint that can be read: {error}.") from error


class _Members(type):
    """Of classes that have whatever member is asked for: some Pythons pickle an enumeration's by name."""

    def __getattr__(cls, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class StandIn(nn.Module, metaclass=_Members):
    """Takes the state of an object whose class is not at hand."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in FOREIGN:
            return _Members(name, (StandIn,), {"__module__": __name__})
        return super().find_class(module, name)


_PICKLE = types.SimpleNamespace(
    __name__="pickle",
    Unpickler=_Unpickler,
    load=lambda file, **options: _Unpickler(file, **options).load(),
)
