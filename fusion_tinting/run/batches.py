"""What of a batch an encoder takes: decided once for each task, by the encoder's signature and a batch.

By name of a mapping, by position of a tuple; labels are left out. What is not certain is refused: then the
user says it, with `inputs=`.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.run.samples import INPUT_KEYS, Unstacked, described, normalized, stacked

Take = Callable[[Any], Any]

_LABEL = re.compile(r"(.*_)?(labels?(_ids)?|targets?)|y|classes")
_WIDE = re.compile("mask|ids|embeds|values|states|cache|pixel|image|label|target")
"""Names of parameters that cannot be meant for one number a sample, unless it is a label."""
_NUMBERING = ("id", "idx", "index", "indices")
_TENSOR, _OPTION = re.compile("tensor|array", re.IGNORECASE), re.compile(r"\b(bool|int|float|str)\b")


@dataclass(frozen=True)
class Signature:
    """What an encoder's `forward` takes.

    Attributes:
        text: as Python writes it, for errors.
        positions: names of the parameters that can be given tensors by position, in order.
        required: how many of these must be given.
        names: parameters that can be given by name.
        more: whether it takes other names too.
        by_name: whether it takes nothing by position.
    """

    text: str
    positions: Sequence[str]
    required: int
    names: Sequence[str]
    more: bool
    by_name: bool

    @classmethod
    def of(cls, encoder: nn.Module) -> "Signature":
        """Read it from an encoder, or from the one within a wrapper that passes on whatever it is given.

        Args:
            encoder: any module.
        """
        parameters = _parameters(encoder)
        kinds = [p.kind for p in parameters]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        first_option = next((place for place, p in enumerate(named) if _is_option(p)), len(named))
        rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        keyword = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        untyped = bool(rest) and (
            rest[0].annotation in (inspect.Parameter.empty, Any) or _is_tensor(rest[0].annotation)
        )
        return cls(
            f"{type(encoder).__name__}.forward({', '.join(str(p) for p in parameters)})",
            [p.name for p in named[:first_option]],
            sum(p.default is p.empty for p in named),
            keyword,
            untyped or (inspect.Parameter.VAR_POSITIONAL in kinds and bool(rest)),
            {p.kind for p in _own_parameters(encoder)} == {inspect.Parameter.VAR_KEYWORD},
        )


def _parameters(encoder: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of `forward`; of a wrapper's, those of what it wraps."""
    seen: list[nn.Module] = []
    while True:
        parameters = _own_parameters(encoder)
        seen.append(encoder)
        inner, tensors = _wrapped(encoder), any(_is_tensor(p.annotation) for p in parameters)
        variadic = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) and not tensors
        passes_on = variadic or isinstance(encoder, TintedNetwork)
        if not passes_on or inner is None or any(inner is module for module in seen):
            return parameters
        encoder = inner


def _own_parameters(encoder: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(encoder.forward).parameters.values())
    except (TypeError, ValueError):  # compiled code has no signature
        return []


def _wrapped(module: nn.Module) -> nn.Module | None:
    children = dict(module.named_children())
    for name in ("encoder", "module", "_orig_mod", "base_model", "model"):
        if name in children:
            return children[name]
    return next(iter(children.values())) if len(children) == 1 else None


def _is_tensor(annotation: object) -> bool:
    return annotation is not inspect.Parameter.empty and bool(_TENSOR.search(str(annotation)))


def _is_option(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is a switch or a number, and no input."""
    if parameter.default is not parameter.empty and parameter.default is not None:
        return True
    kind = parameter.annotation
    named = kind.__name__ if isinstance(kind, type) else str(kind)
    return kind is not parameter.empty and not _is_tensor(kind) and bool(_OPTION.search(named))


@dataclass(frozen=True)
class _Picked:
    """Takes some of a mapping's values, or the first elements of a tuple.

    Attributes:
        what: the keys, or how many elements.
        alone: whether a single value is passed as it is, and not by its name.
        within: whether they are within a tuple's first element.
    """

    what: Sequence[str] | int
    alone: bool = False
    within: bool = False

    def __call__(self, batch: Any) -> Any:
        found = normalized(batch)
        found = normalized(found[0]) if self.within else found
        if isinstance(self.what, int):
            values = [stacked(value) for value in list(found)[: self.what]]
            return values[0] if len(values) == 1 else tuple(values)
        found = found if isinstance(found, Mapping) else found._asdict()
        if missing := [key for key in self.what if key not in found]:
            raise ValueError(f"A batch lacks {missing}, which the first has. Found {list(found)}.")
        values = [stacked(found[key]) for key in self.what]
        return values[0] if self.alone else dict(zip(self.what, values, strict=True))


def as_it_is(batch: Any) -> Any:
    """Return all of a batch.

    Args:
        batch: whatever the encoder takes as its only argument.
    """
    return stacked(normalized(batch))


def taking(encoder: nn.Module, batch: Any, larger: Any = None) -> Take:
    """Return the function that takes out of every batch what an encoder is called with.

    It returns a mapping for keyword arguments, a tuple for positional ones, or a single argument.

    Args:
        encoder: which is called.
        batch: the first one, as its collate function or its loader gives it.
        larger: a batch of more samples, where there is one: a list that grows with it is a list of samples.

    Raises:
        ValueError: it is not certain; what was found, the signature and `inputs=` are named.
    """
    signature = Signature.of(encoder)
    found: Any = normalized(batch)
    if isinstance(found, Mapping):
        return _by_name(signature, found)
    if not isinstance(found, (tuple, list)) or not found or isinstance(found, Unstacked):
        return as_it_is
    if isinstance(found, list) and larger is not None and len(found) != len(larger):
        return as_it_is  # a collate function that makes a list of the samples
    if set(getattr(found, "_fields", ())) & set(signature.names):
        return _by_name(signature, found._asdict())  # type: ignore[union-attr]
    first, rest = found[0], found[1:]
    if all(map(_beside, rest)):
        if isinstance(first, Mapping):
            return replace(_by_name(signature, normalized(first)), within=True)
        if isinstance(first, (tuple, list)) and len(signature.positions) > 1 and _tensors(first):
            return _Picked(_count(signature, normalized(first)), within=True)
    if isinstance(found, list) and isinstance(first, tuple):
        raise _unclear(signature, found)  # a list of samples, each with its label
    if not isinstance(first, (Tensor, list, tuple)):
        return as_it_is  # strings, pictures
    return _Picked(_count(signature, found))


def _by_name(signature: Signature, batch: Mapping[str, Any]) -> _Picked:
    """Return what takes the values of a mapping that the encoder takes."""
    required = signature.positions[: signature.required]
    rest = [key for key in batch if not _is_label(key) or key in required]
    named = [key for key in rest if key in signature.names]
    tensors = [key for key in rest if isinstance(batch[key], Tensor)]
    wide = [key for key in tensors if batch[key].ndim > 1]
    if named:
        others = [key for key in wide if key not in named]
        missing = [name for name in required if name not in named]
        if missing or _alike(others, signature, named):
            raise _unclear(signature, batch)
        keys = [*named, *(others if signature.more else ())]
        return _Picked(keys, alone=keys == list(signature.positions[:1]) and not signature.by_name)
    if signature.by_name or (signature.more and not signature.positions):
        return _Picked([key for key in tensors if key not in _NUMBERING] or rest)
    usual = [key for key in rest if key in INPUT_KEYS]
    for candidates in (rest, wide, tensors, usual if len(signature.positions) < 2 else []):
        if len(candidates) == 1 and signature.required < 2:
            return _Picked(candidates, alone=True)
    raise _unclear(signature, batch)


def _alike(keys: Sequence[str], signature: Signature, named: Sequence[str]) -> bool:
    """Return whether a key that the encoder does not know is much like a name that is not given."""
    free = [name for name in signature.names if name not in named and not _is_label(name)]
    return any(
        get_close_matches(key, free, n=1, cutoff=0.75) or any(key in name or name in key for name in free)
        for key in keys
    )


def _count(signature: Signature, found: Sequence[Any]) -> int:
    """Return how many of a tuple's elements the encoder takes: the first ones.

    With parameters that may be left out this is certain only if what follows is no input: a number or a
    name for each sample; or if they are masks of ones and zeros.
    """
    positions, required = signature.positions, signature.required
    if len(found) == 1 and required < 2:
        return 1
    if positions and len(positions) == required and len(found) >= required:
        return required
    count, least = len(found), max(1, required)
    while count > least and _beside(found[count - 1]):
        count -= 1
        if count < len(positions) and not _WIDE.search(positions[count]):
            raise _unclear(signature, found)
    labeled, count = count < len(found), min(count, len(positions))  # then all before them are inputs
    fits = all(
        labeled or _fits_mask(positions[place], found[place], found[0]) for place in range(least, count)
    )
    if count < least or not fits:
        raise _unclear(signature, found)
    return count


def _unclear(signature: Signature, found: Any) -> ValueError:
    return ValueError(
        f"What of a batch the encoder takes is not certain: a batch is {described(found)}; the encoder is "
        f"{signature.text}. Say it with `inputs=`, a function from a batch to what the encoder takes: "
        "a tensor, a tuple of arguments, or a mapping of arguments by name."
    )


def _is_label(name: str) -> bool:
    return _LABEL.fullmatch(name) is not None


def _fits_mask(name: str, value: Any, first: Any) -> bool:
    same = isinstance(value, Tensor) and isinstance(first, Tensor) and value.shape == first.shape[:2]
    return "mask" in name and same and bool(((value == 0) | (value == 1)).all())


def _beside(value: Any) -> bool:
    """Return whether a batch's element is a number or a name for each sample, or nothing at all."""
    return value.ndim < 2 if isinstance(value, Tensor) else not isinstance(value, Mapping)


def _tensors(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (Tensor, Unstacked)) for value in values)
