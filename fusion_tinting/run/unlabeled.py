"""A task's unlabeled inputs: every sample has an index, so that its expert prediction can be looked up."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from fusion_tinting.method.schedule import batch_schedule

INPUT_KEYS = ("input", "inputs", "image", "images", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "target", "targets")
CACHE_BYTES = 1 << 30
"""A pool whose collated inputs fit in this much memory is kept there: decoding and preprocessing
images again at every step costs more than a small model does."""


class Movable(Protocol):
    """A tensor, or a bundle of tensors."""

    @property
    def nbytes(self) -> int:
        """Its memory."""

    def to(self, device: torch.device) -> Any:
        """Return it on another device."""


T = TypeVar("T", bound=Movable)


class Unlabeled:
    """The unlabeled inputs of one task.

    Args:
        dataset: indexable; its items are what `collate` takes.
        collate: a list of items -> a batch, of which the input is taken (see `input_of`).
        num_workers: loader processes for a pool too large to keep in memory.
        version: names the content of `dataset`, where something does: equal only if the content is.

    Raises:
        ValueError: no sample.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] = default_collate,
        num_workers: int = 0,
        version: str | None = None,
    ):
        self.dataset, self.collate, self.num_workers = dataset, collate, num_workers
        self.version = version
        self._cached: Tensor | None = None
        if len(dataset) == 0:
            raise ValueError("The unlabeled data is empty: expected at least one sample.")

    @classmethod
    def of(cls, source: "Unlabeled | DataLoader[Any] | Iterable[Any]") -> "Unlabeled":
        """Make it from a DataLoader, a Dataset or an iterable.

        From a DataLoader: its dataset, the samples that its sampler names, its collate function and
        workers (order and batch size do not count). From a `Dataset` with a length: its samples. From
        another iterable of batches: read once and cut into samples.

        Args:
            source: one of these.

        Raises:
            ValueError: no sample.
        """
        if isinstance(source, Unlabeled):
            return source
        if isinstance(source, Dataset) and hasattr(source, "__len__"):
            return cls(source)
        if isinstance(source, DataLoader) and source.batch_size and _indexable(source):
            whole = cls(source.dataset, source.collate_fn, source.num_workers)
            # Another sampler, such as SubsetRandomSampler, says which samples there are.
            plain = isinstance(source.sampler, (SequentialSampler, RandomSampler))
            return whole if plain else whole.subset(sorted(source.sampler))
        return cls([sample for batch in source for sample in _samples(input_of(batch))])

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, indices: Sequence[int]) -> "Unlabeled":
        """Return only some of the samples, renumbered from zero.

        Args:
            indices: which, in order.
        """
        indices = list(map(int, indices))
        version = None if self.version is None else _digest(f"{self.version} {indices}".encode())
        return Unlabeled(Subset(self.dataset, indices), self.collate, self.num_workers, version)

    def first(self) -> Any:
        """Return the input of the first sample, as a batch of one."""
        return input_of(self.collate([self.dataset[0]]))

    def fingerprint(self) -> str:
        """Return a hash of the number of samples and of three of them: not every change shows."""
        three = [self.dataset[index] for index in (0, len(self) // 2, len(self) - 1)]
        inputs = input_of(self.collate(three))
        values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        parts = [
            v.cpu().float().numpy().tobytes() if isinstance(v, Tensor) else repr(v).encode() for v in values
        ]
        return _digest(str(len(self)).encode(), *parts)[:16]

    def content(self) -> str | None:
        """Return a hash of the content; None where that would mean reading a large data set whole.

        It is a hash of all inputs as the model sees them, where they are kept in memory; of `version` and
        of three inputs where that is given.
        """
        if (cached := self._in_memory()) is not None:
            cached = cached.contiguous()
            return _digest(
                f"{cached.dtype} {tuple(cached.shape)}".encode(), cached.view(torch.uint8).numpy()
            )
        if self.version is None:
            return None
        return _digest(f"{self.version} {len(self)} {self.fingerprint()}".encode())

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Any]:
        """Return the inputs of one batch after another.

        Args:
            schedule: the sample indices of each batch.
        """
        rows = [list(map(int, indices)) for indices in schedule]
        if (cached := self._in_memory()) is not None:
            return (cached[indices] for indices in rows)
        return self._load(rows)

    def _load(self, schedule: Sequence[Sequence[int]]) -> Iterator[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[list(rows) for rows in schedule],
            collate_fn=self.collate,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or every pass would draw from the caller's
        )
        return map(input_of, loader)

    def _in_memory(self) -> Tensor | None:
        """Return all inputs as one tensor, where they are tensors of one shape and not too large."""
        if self._cached is None:
            first = self.first()
            if not isinstance(first, Tensor) or first.nbytes * len(self) > CACHE_BYTES:
                return None
            every = range(len(self))
            inputs = list(self._load([every[i : i + 256] for i in range(0, len(self), 256)]))
            if len({chunk.shape[1:] for chunk in inputs}) > 1:
                return None
            self._cached = torch.cat(inputs)
        return self._cached


def input_of(batch: Any) -> Any:
    """Return the model's input within a batch.

    A tensor is its own input; of a tuple or list it is the first element; of a mapping the value of
    the first key that names an input, or of the only key beside the labels; or else the mapping without its
    labels (keyword arguments).

    Args:
        batch: what a collate function or a loader gives.
    """
    if isinstance(batch, (tuple, list)):
        return batch[0]
    if not isinstance(batch, Mapping):
        return batch
    rest = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    named = [key for key in INPUT_KEYS if key in rest]
    if named or len(rest) == 1:
        return rest[named[0] if named else next(iter(rest))]
    return rest


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Move a tensor, or every tensor of a mapping; floating-point ones become float32.

    Args:
        inputs: of the encoder.
        device: where to.
    """
    if isinstance(inputs, Mapping):
        return {key: to_device(value, device) for key, value in inputs.items()}
    if not isinstance(inputs, Tensor):
        return inputs
    dtype = torch.float32 if inputs.is_floating_point() else None  # half-precision inputs too
    if torch.device(device).type == "cuda" and not inputs.is_cuda:
        inputs = inputs.pin_memory()  # or the copy would wait for the device
    return inputs.to(device, dtype, non_blocking=True)


def resident(tensor: T, device: torch.device) -> T:
    """Return a tensor on the device, if it is small enough to stay there as long as it is needed.

    Args:
        tensor: or predictions that are kept as several.
        device: where it is needed.
    """
    return tensor.to(device) if tensor.nbytes <= CACHE_BYTES else tensor


def split_aside(
    task: str, total: int, count: int, seed: int, purpose: str = "aside"
) -> tuple[Tensor, Tensor]:
    """Return which inputs of a task teach, and which are kept aside to judge by; in random order.

    Args:
        task: its name; every task has a draw of its own.
        total: the number of its inputs.
        count: how many to keep aside; at least one is, and at least one teaches.
        seed: of the run.
        purpose: another one, another draw.

    Raises:
        ValueError: a task with a single input.
    """
    if total < 2:
        raise ValueError(f"Task `{task}` has a single input; at least two are needed: one is kept aside.")
    count = min(max(1, count), total - 1)
    order = batch_schedule(total, total, 1, seed, f"{purpose} {task}")[0]
    return order[count:], order[:count]


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)  # bytes or an array
    return digest.hexdigest()


def _indexable(loader: DataLoader[Any]) -> bool:
    return not isinstance(loader.dataset, IterableDataset)


def _samples(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Mapping):
        rows = zip(*inputs.values(), strict=True)
        return (dict(zip(inputs, row, strict=True)) for row in rows)
    return iter(inputs)


class InMemory(Dataset[Any]):
    """Remembers the items of a dataset after their first use, in the process that uses them.

    Args:
        dataset: indexable.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._items: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index not in self._items:
            self._items[index] = self.dataset[index]
        return self._items[index]
