"""A name for a callable of the user's own, by which a run with it is known."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor

UNNAMED = "without a name"


@dataclass(frozen=True)
class Named:
    """A sampler or objective of your own, with a name that tells a run with it from others.

    What a callable does cannot be seen from outside: a default, a global or a bound object may change it.
    So a run is continued, or taken for finished, only where its callables have names, and the same ones. A
    function, or a `functools.partial`, can have its own: `function.name = "my-own-1"`.

    Attributes:
        name: says all that matters: another threshold, temperature or version, another name.
        function: the callable.

    Raises:
        ValueError: no name, or nothing that can be called.
    """

    name: str
    function: Callable[..., Any]

    def __post_init__(self) -> None:
        require_name(self.name)
        if not callable(self.function):
            raise ValueError(f"`Named({self.name!r}, …)` needs a callable. Found {self.function!r}.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        return self.function(*args, **kwargs)


def returned_by(what: str, function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Return what a function of the user's makes of tensors that others read after it.

    Args:
        what: the function is, for the error.
        function: the callable.
        *tensors: its arguments.

    Raises:
        ValueError: it has changed them.
    """
    before = [tensor._version for tensor in tensors]
    returned = function(*tensors)
    if before != [tensor._version for tensor in tensors]:
        raise ValueError(
            f"The {what} changes the outputs that it is given, which others read after it. Let it compute "
            "new ones: `expert / 2`, not `expert /= 2`."
        )
    return returned


def require_name(name: object) -> None:
    """Refuse what cannot be the name of a callable.

    Args:
        name: of an objective or sampler.

    Raises:
        ValueError: an empty one, none, or one that says that there is none.
    """
    if not isinstance(name, str) or not name.strip() or UNNAMED in name:
        raise ValueError(f"The name of a callable must be a string that is not empty. Found {name!r}.")


def name_of(function: Callable[..., Any]) -> str:
    """Return the name that the user gave a callable, or what settings call one that has none.

    Args:
        function: the callable.

    Raises:
        ValueError: a function whose `name` is none.
    """
    if isinstance(function, Named):
        return function.name
    if isinstance(function, (FunctionType, partial)) and "name" in vars(function):
        require_name(vars(function)["name"])
        return str(vars(function)["name"])
    return f"{getattr(function, '__qualname__', type(function).__name__)}, {UNNAMED}"
