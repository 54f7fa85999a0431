"""A task's unlabelled inputs: every sample has an index, every batch a place in a seeded schedule.

Because the schedule is a pure function of (seed, task, number of samples), a resumed run sees the same
batches, and each sample's expert prediction can be computed once and looked up by index.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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

INPUT_KEYS = ("input", "inputs", "image", "images", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "target", "targets")
CACHE_BYTES = 1 << 30
"""A pool whose collated inputs fit in this much memory is kept there: decoding and preprocessing
images again at every step costs more than a small model does."""


class Unlabeled:
    """The unlabelled inputs of one task.

    Args:
        dataset: indexable; its items are what `collate` takes.
        collate: a list of items -> a batch, of which the input is taken (see `input_of`).
        num_workers: loader processes for a pool too large to keep in memory.
        version: names the content of `dataset`, where something does: equal only if the content is.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence,
        collate=default_collate,
        num_workers: int = 0,
        version: str | None = None,
    ):
        self.dataset, self.collate, self.num_workers = dataset, collate, num_workers
        self.version = version
        self._cached: Tensor | None = None
        if len(dataset) == 0:
            raise ValueError("The unlabelled data is empty: expected at least one sample.")

    @classmethod
    def of(cls, source: "Unlabeled | DataLoader | Iterable") -> "Unlabeled":
        """From a DataLoader: its dataset, the samples that its sampler names, its collate function and
        workers (order and batch size do not count). From a `Dataset` with a length: its samples. From
        another iterable of batches: read once and cut into samples."""
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
        """Only the samples `indices`, renumbered from zero."""
        indices = list(map(int, indices))
        version = None if self.version is None else _digest(f"{self.version} {indices}".encode())
        return Unlabeled(Subset(self.dataset, indices), self.collate, self.num_workers, version)

    def first(self) -> Any:
        """The input of the first sample, as a batch of one."""
        return input_of(self.collate([self.dataset[0]]))

    def fingerprint(self) -> str:
        """Hash of the number of samples and of three of them: tells other data, not every change."""
        three = [self.dataset[index] for index in (0, len(self) // 2, len(self) - 1)]
        found = input_of(self.collate(three))
        values = found.values() if isinstance(found, Mapping) else [found]
        parts = [
            v.cpu().float().numpy().tobytes() if isinstance(v, Tensor) else repr(v).encode() for v in values
        ]
        return _digest(str(len(self)).encode(), *parts)[:16]

    def content(self) -> str | None:
        """Hash of all inputs as the model sees them, where they are kept in memory; of `version` and
        of three inputs where that is given; None where only reading everything would tell."""
        if self._keep_in_memory():
            cached = self._cached.contiguous()
            return _digest(
                f"{cached.dtype} {tuple(cached.shape)}".encode(), cached.view(torch.uint8).numpy()
            )
        if self.version is None:
            return None
        return _digest(f"{self.version} {len(self)} {self.fingerprint()}".encode())

    def batches(self, schedule: Iterable[Sequence[int]]) -> Iterator[Any]:
        """The inputs of one batch after another; each element of `schedule` lists sample indices."""
        schedule = [list(map(int, indices)) for indices in schedule]
        if self._keep_in_memory():
            return (self._cached[indices] for indices in schedule)
        return self._load(schedule)

    def _load(self, schedule: Sequence[Sequence[int]]) -> Iterator[Any]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=schedule,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or every pass would draw from the caller's
        )
        return map(input_of, loader)

    def _keep_in_memory(self) -> bool:
        if self._cached is None:
            first = self.first()
            if not isinstance(first, Tensor) or first.nbytes * len(self) > CACHE_BYTES:
                return False
            every = range(len(self))
            inputs = list(self._load([every[i : i + 256] for i in range(0, len(self), 256)]))
            if len({chunk.shape[1:] for chunk in inputs}) > 1:
                return False
            self._cached = torch.cat(inputs)
        return True


def input_of(batch: Any) -> Any:
    """The model's input within a batch.

    A tensor is its own input; of a tuple or list it is the first element; of a mapping the value of
    the first key that names an input, or else the mapping without its labels (keyword arguments).
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


def call(module: torch.nn.Module, inputs: Any) -> Any:
    """`module(inputs)`, or `module(**inputs)` when the inputs are a mapping."""
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Move a tensor, or every tensor of a mapping; floating-point ones become float32."""
    if isinstance(inputs, Mapping):
        return {key: to_device(value, device) for key, value in inputs.items()}
    if not isinstance(inputs, Tensor):
        return inputs
    dtype = torch.float32 if inputs.is_floating_point() else None  # half-precision inputs too
    if torch.device(device).type == "cuda" and not inputs.is_cuda:
        inputs = inputs.pin_memory()  # or the copy would wait for the device
    return inputs.to(device, dtype, non_blocking=True)


def resident(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device, if it is small enough to stay there as long as it is needed."""
    return tensor.to(device) if tensor.nbytes <= CACHE_BYTES else tensor


def batch_schedule(n: int, batch_size: int, steps: int, seed: int, task: str) -> Tensor:
    """Sample indices of every step, shape (steps, batch_size): one shuffled epoch after another."""
    generator = torch.Generator().manual_seed(stable_seed(seed, "batches", task))
    epochs = max(1, math.ceil(steps * batch_size / n))
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)


def task_order(tasks: list[str], step: int, seed: int) -> list[str]:
    """The tasks in this iteration's random order. It depends on their names, not on their places, so
    that listing the tasks in another order changes nothing but the order of the results."""
    return sorted(tasks, key=lambda task: stable_seed(seed, "order", step, task))


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any values, the same in every process and Python version."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _digest(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)  # bytes or an array
    return digest.hexdigest()


def _indexable(loader: DataLoader) -> bool:
    return not isinstance(loader.dataset, IterableDataset)


def _samples(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Mapping):
        rows = zip(*inputs.values(), strict=True)
        return (dict(zip(inputs, row, strict=True)) for row in rows)
    return iter(inputs)


class InMemory(Dataset):
    """Remembers the items of a dataset after their first use, in the process that uses them."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._items: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index not in self._items:
            self._items[index] = self.dataset[index]
        return self._items[index]
