"""A task's unlabeled inputs: every sample has an index, so that its expert prediction can be looked up."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from fusion_tinting.errors import explained
from fusion_tinting.method.content import value_hash
from fusion_tinting.method.schedule import batch_schedule
from fusion_tinting.run import sources
from fusion_tinting.run.batches import Take, taking
from fusion_tinting.run.samples import collated, equal, input_of

TWICE = 16
"""Samples that are read twice, to see whether they are augmented at random."""
CACHE_BYTES = 1 << 30
"""A pool whose collated inputs fit in this much memory is kept there: decoding and preprocessing
images again at every step costs more than a small model does."""


IN_MEMORY = (list, tuple, Tensor, TensorDataset)
LOOKED_AT, ONE_IN = 256, 32
"""How many inputs of data that is not in memory are looked at: see `Unlabeled.content`."""


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
        collate: a list of items -> a batch.
        num_workers: loader processes for a pool too large to keep in memory.
        version: names the content of `dataset`, where something does: equal only if the content is.
        take: a batch -> what the encoder is called with; None leaves it to `fitted`.

    Raises:
        ValueError: no sample.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] = collated,
        num_workers: int = 0,
        version: str | None = None,
        take: Take | None = None,
    ):
        self.dataset, self.collate, self.num_workers = dataset, collate, num_workers
        self.version, self.take = version, take
        self._cached: Tensor | None = None
        if len(dataset) == 0:
            raise ValueError("The unlabeled data is empty: expected at least one sample.")

    @classmethod
    def of(cls, source: Any, encoder: nn.Module | None = None, inputs: Take | None = None) -> "Unlabeled":
        """Make it from a DataLoader, a data set, a tensor, columns, or an iterable of batches.

        See `sources.read`: what has a length is read when it is needed, anything else once.

        Args:
            source: one of these.
            encoder: decides what of a batch is taken; see `batches.taking`.
            inputs: a batch -> what the encoder is called with, where that is given.

        Raises:
            ValueError: no sample, or something else; or it is not certain what the encoder takes.
        """
        if isinstance(source, Unlabeled):
            return source.fitted(encoder, inputs)
        dataset, options = sources.read(source, encoder, inputs)
        return cls(dataset, **options).fitted(encoder, inputs)

    def fitted(self, encoder: nn.Module | None, inputs: Take | None = None) -> "Unlabeled":
        """Return the same samples, of whose batches is taken what an encoder takes.

        Args:
            encoder: which is called; None leaves it open.
            inputs: a batch -> what the encoder is called with; None leaves it to the encoder.

        Raises:
            ValueError: it is not certain what the encoder takes.
        """
        if self.take is not None or (encoder is None and inputs is None):
            return self
        if inputs is None and encoder is not None:
            batch = self.collate([self.dataset[0]])
            if isinstance(batch, Tensor):
                return self
            larger = self.collate([self.dataset[0], self.dataset[min(1, len(self) - 1)]])
            inputs = taking(encoder, batch, larger)
        return Unlabeled(self.dataset, self.collate, self.num_workers, self.version, inputs)

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, indices: Sequence[int]) -> "Unlabeled":
        """Return only some of the samples, renumbered from zero.

        Args:
            indices: which, in order.

        Raises:
            ValueError: an index that no sample has.
        """
        indices = list(map(int, indices))
        if wrong := [index for index in indices if not -len(self) <= index < len(self)]:
            raise ValueError(f"There are {len(self)} samples, and none has the index {wrong[0]}.")
        version = None if self.version is None else _digest(f"{self.version} {indices}".encode())
        part = Unlabeled(Subset(self.dataset, indices), self.collate, self.num_workers, version, self.take)
        if self._cached is not None:  # one draw, where the data are augmented at random
            part._cached = self._cached[indices]
        return part

    def first(self, count: int = 1, backward: bool = False) -> Any:
        """Return the inputs of the first samples as one batch; a sample counts again where there are fewer.

        Args:
            count: how many.
            backward: whether the first comes last.
        """
        return self._taken([place % len(self) for place in range(count)][:: -1 if backward else 1])

    def require_repeatable(self) -> None:
        """Refuse data that are augmented at random: a sample must be what its expert has seen.

        Some samples are read twice, unless they are tensors and lists in memory, or `version` is given.

        Raises:
            ValueError: a sample differs when it is read again.
        """
        plain = isinstance(_source(self.dataset), IN_MEMORY) and self.collate is collated
        if plain or self.version is not None:
            return
        rows = [place * len(self) // TWICE for place in range(TWICE)]
        if not equal(self._taken(rows), self._taken(rows)):
            raise ValueError(
                "A sample that is read twice is not the same twice: it would be taught against the "
                "expert's prediction of another draw. Turn random augmentation, shuffling and masking off, "
                "in the data set and in `collate_fn`; or draw once and keep that, as a `TensorDataset`."
            )

    def _taken(self, rows: Sequence[int]) -> Any:
        with explained(f"{self.named(rows)} cannot be read"):
            return self._input_of(self.collate([self.dataset[place] for place in rows]))

    def named(self, rows: Sequence[int]) -> str:
        """Return what an error calls samples: by their places in the user's data set.

        Args:
            rows: the indices of some.
        """
        dataset: Any = self.dataset
        places = list(rows)
        while isinstance(dataset, Subset):
            dataset, places = dataset.dataset, [dataset.indices[place] for place in places]
        first, last = min(places), max(places)
        return f"sample {first}" if first == last else f"one of the samples {first} to {last}"

    def _input_of(self, batch: Any) -> Any:
        return input_of(batch) if self.take is None else self.take(batch)

    def fingerprint(self) -> str:
        """Return a hash of the number of samples and of three of them, as release 0.1.0 wrote it."""
        inputs = self._taken([0, len(self) // 2, len(self) - 1])
        values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        parts = [
            v.cpu().float().numpy().tobytes() if isinstance(v, Tensor) else repr(v).encode() for v in values
        ]
        return _digest(str(len(self)).encode(), *parts)[:16]

    def content(self) -> str:
        """Return a hash of all inputs where they are in memory, and else of some of them.

        Lists, tensors, and what is kept in memory for the run, are hashed whole. Of other data all of up to
        `LOOKED_AT` inputs are, and of more that many or one in `ONE_IN`, whichever is more, evenly spread:
        a change of others does not show. With `version`, which vouches for the rest, it is always some.
        """
        rows: Sequence[int] = range(len(self))
        whole = self.version is None and (
            isinstance(_source(self.dataset), IN_MEMORY) or self._in_memory() is not None
        )
        if not whole and len(rows) > LOOKED_AT:
            count = max(LOOKED_AT, len(rows) // ONE_IN)
            rows = [place * (len(rows) - 1) // (count - 1) for place in range(count)]
        chunks = [rows[start : start + LOOKED_AT] for start in range(0, len(rows), LOOKED_AT)]
        seen = "".join(map(value_hash, self.batches(chunks)))
        return _digest(f"{self.version} {len(self)} {seen}".encode())

    def whole_content(self) -> str | None:
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
        batches = iter(loader)
        for rows in schedule:
            with explained(f"{self.named(rows)} cannot be read"):
                batch = self._input_of(next(batches))
            yield batch

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


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Move every tensor of inputs; floating-point ones become float32.

    Args:
        inputs: of the encoder.
        device: where to.
    """
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        return type(inputs)(to_device(value, device) for value in inputs)
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


def _source(dataset: Any) -> Any:
    """Return the data set that subsets are of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


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
