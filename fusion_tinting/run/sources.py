"""The kinds of data that users hand in as a task's unlabeled inputs, read as samples."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from fusion_tinting.run.batches import Take, as_it_is, taking
from fusion_tinting.run.samples import as_tensor, collated, described, input_of, nbytes, normalized

MOST, MOST_BYTES = 100_000, 4 << 30
"""Samples, and their memory, that are read of an iterable without a length: it may be an endless one."""


def read(source: Any, encoder: nn.Module | None, inputs: Take | None) -> tuple[Any, dict[str, Any]]:
    """Return samples with an index, and how `Unlabeled` makes batches of them.

    From a DataLoader: its data set, the samples that its sampler names, its collate function and workers;
    order, batch size and `drop_last` do not count. From a `Dataset`, also one of `datasets`, or a tensor or
    array: its rows are the samples. A mapping holds columns. Anything else, also a DataLoader with an
    `__iter__` of its own, is an iterable of batches, read once and cut into samples.

    Args:
        source: any of these.
        encoder: decides what of a ready batch is kept.
        inputs: the same, where it is given.

    Raises:
        ValueError: none of these, an iterable without end, or batches that make no samples.
    """
    if isinstance(source, DataLoader) and source.batch_sampler is not None and _iterates_plainly(source):
        return _loaded(source)
    if isinstance(source, (Tensor, np.ndarray)):
        rows = as_tensor(source)
        if not isinstance(rows, Tensor) or rows.ndim == 0:
            raise _refused(f"{described(source)}, which has no rows of numbers")
        return rows, {}
    if _is_of_datasets(source) or isinstance(source, Dataset):
        return _dataset(source), {}
    if isinstance(source, Mapping):
        if any(isinstance(value, Dataset) or _is_of_datasets(value) for value in source.values()):
            raise _refused(f"a mapping of the data sets {list(source)}: name one of them")
        return _cut([source], encoder, inputs, columns=True)
    if isinstance(source, (str, bytes, Path)) or not isinstance(source, (Iterable, Sequence)):
        raise _refused(f"{source!r}")
    if isinstance(source, tuple) and _may_be_columns(source):
        raise _refused(
            "a tuple of tensors: are they batches (then give a list) or columns (then give "
            "`TensorDataset(*columns)`)?"
        )
    if isinstance(source, list) and source and _is_sample(source[0]):
        return source, {}
    return _cut(source, encoder, inputs)


def _iterates_plainly(loader: DataLoader[Any]) -> bool:
    """Return whether a loader gives what its data set, sampler and collate function make, and no more."""
    ways = ("__iter__", "_get_iterator")
    return all(getattr(type(loader), way) is getattr(DataLoader, way) for way in ways)


def _may_be_columns(parts: tuple[Any, ...]) -> bool:
    """Return whether a tuple of tensors may be one batch, of inputs and masks or labels."""
    if len(parts) < 2 or not all(isinstance(part, Tensor) and part.ndim for part in parts):
        return False
    alike = len({(part.shape[1:], part.dtype) for part in parts}) == 1
    return len({len(part) for part in parts}) == 1 and not (alike and parts[0].is_floating_point())


def _refused(found: str) -> ValueError:
    return ValueError(
        "Unlabeled inputs must be a DataLoader, a data set, a tensor of samples, or an iterable of "
        f"batches. Found {found}."
    )


def _is_of_datasets(source: Any) -> bool:
    """Return whether it is a data set of Hugging Face's library, which is not imported for this."""
    return any(kind.__module__.partition(".")[0] == "datasets" for kind in type(source).__mro__)


def _dataset(source: Any) -> Any:
    if isinstance(source, Mapping):  # a `DatasetDict`
        raise _refused(f"a mapping of the data sets {list(source)}: name one of them")
    indexed = hasattr(source, "__len__") and not isinstance(source, IterableDataset)
    return source if indexed else list(_limited(source))


def _loaded(loader: DataLoader[Any]) -> tuple[Any, dict[str, Any]]:
    collate = collated if loader.collate_fn is default_collate else loader.collate_fn
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__getitem__"):
        return list(_limited(loader.dataset)), {"collate": collate}
    rows = _rows_of(loader)
    dataset = loader.dataset if rows is None else Subset(loader.dataset, rows)
    return dataset, {"collate": collate, "num_workers": loader.num_workers}


def _rows_of(loader: DataLoader[Any]) -> list[int] | None:
    """Return the samples that a loader's sampler names, in order; None for all."""
    own = loader.batch_size is None  # the user's sampler of whole batches
    batches: Any = loader.batch_sampler
    plain = batches.sampler if type(batches) is BatchSampler else None
    sampler: Any = plain if own else loader.sampler
    if type(sampler) is DistributedSampler and is_initialized():
        return None  # a process's share, of samples that are shared out again here
    every = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement
    )
    if every and len(sampler) == len(loader.dataset):  # type: ignore[arg-type]
        return None
    if own:
        return sorted(row for batch in _limited(batches) for row in batch)
    return sorted(_limited(sampler))


def _is_sample(element: Any) -> bool:
    """Return whether an element of a list is one sample: something in it has no length."""
    if isinstance(element, Mapping):
        values = [as_tensor(value) if _is_flat(value) else value for value in element.values()]
        return any(map(_is_single, values)) or all(_is_flat(value) for value in element.values())
    if isinstance(element, tuple):
        return any(map(_is_single, element))
    return isinstance(element, str)


def _is_flat(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, Number) for each in value)
    )


def _is_single(value: Any) -> bool:
    return isinstance(value, (Number, str)) or (isinstance(value, Tensor) and value.ndim == 0)


def _cut(
    batches: Iterable[Any], encoder: nn.Module | None, inputs: Take | None, columns: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Return the samples of batches; where the encoder is known, of what it takes of them."""
    samples: list[Any] = []
    kinds: dict[Any, int] = {}
    taken: Any = None
    for place, batch in enumerate(_limited(batches)):
        if inputs is None and encoder is not None:
            inputs = taking(encoder, batch)
        taken = _columns(batch) if inputs is None else inputs(batch)
        if not columns:
            _require_wide(taken)
        samples += _rows(taken)
        kinds.setdefault(_kind(taken), place)
    if len(kinds) > 1:
        found = "; ".join(f"batch {place} has {kind}" for kind, place in list(kinds.items())[:2])
        raise ValueError(
            f"Samples are of unlike sizes: {found}. Bring them to one size, or give a DataLoader over a "
            "data set whose `collate_fn` pads them."
        )
    if not samples and isinstance(batches, Iterator):
        raise ValueError("The unlabeled data is empty: this iterator was read before. Give a list.")
    if inputs is None:
        return samples, {}
    plain = list if type(taken) is list else collated
    return samples, {"collate": plain, "take": _arguments if isinstance(taken, tuple) else as_it_is}


def _require_wide(taken: Any) -> None:
    """Refuse a batch that may be a sample: an embedding would take each of its numbers for one."""
    values = (
        taken.values() if isinstance(taken, Mapping) else taken if isinstance(taken, tuple) else [taken]
    )
    if all(isinstance(value, Tensor) and value.ndim < 2 for value in values):
        raise ValueError(
            f"A batch is {described(taken)}: is it one sample, or a batch of numbers? Give samples as a "
            "data set or as one tensor of them all; and numbers as a tensor (batch, 1)."
        )


def _arguments(batch: Any) -> Any:
    return tuple(batch)


def _columns(batch: Any) -> Any:
    """Return a batch whose parts are all cut; or, where some cannot be, its input."""
    found = normalized(batch)
    found = tuple(found) if isinstance(found, list) and isinstance(found[0], (Tensor, list)) else found
    try:
        _rows(found)
    except ValueError:
        return input_of(batch)
    return found


def _rows(taken: Any) -> list[Any]:
    """Cut inputs into samples."""
    if type(taken) is list:
        return taken
    if isinstance(taken, Tensor) and taken.ndim > 0:
        return list(taken)
    if not isinstance(taken, (Mapping, tuple)):
        raise ValueError(
            f"A batch is {described(taken)}, which cannot be cut into samples. Say with `inputs=` which "
            "tensors of it the encoder takes."
        )
    values = list(taken.values()) if isinstance(taken, Mapping) else list(taken)
    sized = all(v.ndim > 0 if isinstance(v, Tensor) else isinstance(v, list) for v in values)
    if not sized or len(set(map(len, values))) != 1:
        raise ValueError(
            f"A batch is {described(taken)}: its parts have no common number of samples. Say with "
            "`inputs=` which of them the encoder takes."
        )
    rows = list(zip(*values, strict=True))
    return [dict(zip(taken, row, strict=True)) for row in rows] if isinstance(taken, Mapping) else rows


def _kind(taken: Any) -> Any:
    """Return what all batches must share: the sizes of a sample."""
    if isinstance(taken, Mapping):
        return tuple((key, _kind(value)) for key, value in taken.items())
    if isinstance(taken, tuple):
        return tuple(map(_kind, taken))
    return tuple(taken.shape[1:]) if isinstance(taken, Tensor) else type(taken).__name__


def _limited(source: Any) -> Iterator[Any]:
    """Yield what an iterable holds, unless it does not end."""
    unsized, count, size = not _is_sized(source), 0, 0
    for item in source:
        yield item
        found = normalized(item)
        first = next(iter(found.values()), None) if isinstance(found, Mapping) else found
        first = first[0] if isinstance(first, (tuple, list)) and first else first
        count += len(first) if isinstance(first, Tensor) and first.ndim > 1 and len(first) else 1
        size += nbytes(found)
        if unsized and (count > MOST or size > MOST_BYTES):
            raise ValueError(
                f"The unlabeled data have no length, and no end after {count:,} samples "
                f"({size / 2**20:,.0f} MiB). Give as many as are needed, such as "
                "`itertools.islice(batches, 1000)`; or a list or a data set, which have a length."
            )


def _is_sized(source: Any) -> bool:
    try:
        return len(source) >= 0
    except TypeError:
        return False
