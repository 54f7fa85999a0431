"""Samples and batches as users have them: made into tensors, put together, compared, described."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from fusion_tinting.errors import abbreviate

INPUT_KEYS = ("input", "inputs", "image", "images", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "target", "targets")


class Unstacked(list[Any]):
    """Values, one a sample, that make no tensor: of unlike sizes, or of another kind."""


def stacked(value: Any) -> Any:
    """Return what an encoder takes, once it is known to be one batch.

    Args:
        value: of a batch.

    Raises:
        ValueError: samples that make no batch, by their sizes or kinds.
    """
    if not isinstance(value, Unstacked):
        return value.detach() if isinstance(value, Tensor) else value
    kinds = list(dict.fromkeys(described(as_tensor(each)) for each in value))
    if len(kinds) > 1:
        raise ValueError(
            f"Samples are of unlike sizes: {abbreviate(kinds)}. Bring them to one size, or give a "
            "DataLoader whose `collate_fn` pads them."
        )
    raise ValueError(
        f"A sample is {kinds[0]}, and no tensor. Make tensors of samples (a transform, a processor or a "
        "tokenizer), or give a DataLoader whose `collate_fn` does."
    )


def described(found: object) -> str:
    """Return what an error calls inputs or a batch.

    Args:
        found: of any kind.
    """
    if isinstance(found, Mapping):
        return "a mapping of " + ", ".join(f"{key}: {described(value)}" for key, value in found.items())
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)} of {found.dtype}"
    if isinstance(found, list) and found and isinstance(found[0], str):
        return f"{len(found)} strings, which a tokenizer makes tensors of"
    if isinstance(found, (tuple, list)) and len(found) <= 8 and not isinstance(found, Unstacked):
        return f"a {type(found).__name__} of {len(found)}: " + "; ".join(map(described, found))
    return f"of type {type(found).__name__}"


def normalized(batch: Any) -> Any:
    """Return a batch with its arrays and lists of numbers as tensors, and a dataclass as a mapping.

    Args:
        batch: of any kind.
    """
    if is_dataclass(batch) and not isinstance(batch, (type, Mapping)):
        batch = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if isinstance(batch, Mapping):
        return {key: as_tensor(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        values = map(as_tensor, batch)
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    value = as_tensor(batch)
    return [as_tensor(each) for each in batch] if type(value) is list else value


def as_tensor(value: Any) -> Any:
    """Return an array, or a list of numbers, as a tensor; anything else as it is.

    Args:
        value: one of a batch or of a sample.
    """
    if isinstance(value, np.ndarray):
        return torch.as_tensor(np.ascontiguousarray(value)) if value.dtype.kind in "biufc" else value
    if not isinstance(value, (list, tuple)) or isinstance(value, Unstacked) or not _numbers(value):
        return value
    try:
        return torch.tensor(value)
    except ValueError:  # lists of unlike lengths
        return Unstacked(value)


def _numbers(value: Any) -> bool:
    """Return whether a list holds numbers alone, at any depth."""
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and _numbers(value[0]) and isinstance(value[-1], (Number, list, tuple))
    return isinstance(value, Number)


def collated(samples: Sequence[Any]) -> Any:
    """Return a batch of samples, as PyTorch's `default_collate` does, but for what makes no tensor.

    That becomes `Unstacked`: it counts only if the encoder takes it.

    Args:
        samples: tensors, arrays, numbers, strings, and tuples or mappings of these.
    """
    first = samples[0]
    if is_dataclass(first) and not isinstance(first, (type, Mapping)):
        samples = [normalized(sample) for sample in samples]
        first = samples[0]
    if isinstance(first, Mapping):
        return {key: _column([sample.get(key) for sample in samples]) for key in first}
    if isinstance(first, (tuple, list)) and not _numbers(first):
        columns = [_column(values) for values in zip(*samples, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else columns
    return _column(samples)


def _column(values: Sequence[Any]) -> Any:
    if isinstance(values[0], (list, tuple, np.ndarray)):
        values = [as_tensor(value) for value in values]
    try:
        return default_collate(list(values))
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError):
        return Unstacked(values)


def input_of(batch: Any) -> Any:
    """Return the model's input within a batch, where no encoder is known that could decide it.

    A tensor is its own input; of a tuple or list it is the first element; of a mapping the value of
    the first key that names an input, or of the only key beside the labels; or else the mapping without its
    labels (keyword arguments).

    Args:
        batch: what a collate function or a loader gives.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 0 and not isinstance(batch, Unstacked):
        return stacked(batch[0])
    if not isinstance(batch, Mapping):
        return stacked(batch)
    rest = {key: stacked(value) for key, value in batch.items() if key not in LABEL_KEYS}
    named = [key for key in INPUT_KEYS if key in rest]
    if named or len(rest) == 1:
        return rest[named[0] if named else next(iter(rest))]
    return rest


def equal(one: Any, other: Any) -> bool:
    """Return whether inputs are the same, tensor for tensor.

    Args:
        one: of the encoder.
        other: of the encoder.
    """
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    if not isinstance(one, Tensor):
        return True  # of other kinds nothing is known
    return one.shape == other.shape and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))


def tensors_in(inputs: Any) -> Iterator[Tensor]:
    """Yield all tensors in inputs.

    Args:
        inputs: of the encoder.
    """
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, (Mapping, tuple, list)):
        for part in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from tensors_in(part)


def finite(inputs: Any) -> bool:
    """Return whether all numbers in inputs are finite.

    Args:
        inputs: of the encoder.
    """
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(inputs))


def nbytes(inputs: Any) -> int:
    """Return the memory of all tensors in inputs.

    Args:
        inputs: of the encoder.
    """
    return sum(tensor.nbytes for tensor in tensors_in(inputs))
