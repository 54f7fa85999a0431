"""The kinds of data that can be handed in, read as samples; or a refusal that says what to give."""

import itertools

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fusion_tinting.run.unlabeled import Unlabeled

pytestmark = pytest.mark.quick

X = torch.arange(24.0).view(8, 3)
Y = torch.arange(8)


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Noisy(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.randn(3)


ALL = {
    "tensor": X,
    "array": X.double().numpy(),
    "columns": {"x": X},
    "stream of samples": Stream(X),
    "loader of a stream": DataLoader(Stream(X), batch_size=3, drop_last=True),
    "loader that drops the last": DataLoader(X, batch_size=3, drop_last=True),
    "batch sampler": DataLoader(X, batch_sampler=BatchSampler(RandomSampler(X), 3, True)),
    "finite generator": (part for part in X.split(3)),
    "samples and labels": list(zip(X, Y, strict=True)),
    "samples and numbers": [(row, 1) for row in X],
    "tuple of batches": X.split(3),
}


@pytest.mark.parametrize("kind", ALL)
def test_every_sample_is_read_once(kind):
    (found,) = Unlabeled.of(ALL[kind], torch.nn.Identity()).batches([range(8)])
    assert torch.equal(found.float(), X)


def test_a_sampler_with_replacement_says_how_often_a_sample_counts():
    sampler = WeightedRandomSampler([0.0, 1.0, *[0.0] * 6], 5)
    (found,) = Unlabeled.of(DataLoader(X, sampler=sampler)).batches([range(5)])
    assert torch.equal(found, X[1].expand(5, 3))
    assert len(Unlabeled.of(DataLoader(X, sampler=RandomSampler(X, num_samples=5)))) == 5


REFUSED = {
    "endless batches": (itertools.repeat(X), "no end after"),
    "endless samples": (DataLoader(Stream(itertools.repeat(X[0])), 4), "no end after 100,0.*islice"),
    "a path": ("data.csv", "Found 'data.csv'"),
    "a number": (5, "Found 5"),
    "data sets": ({"train": TensorDataset(X)}, r"the data sets \['train'\]: name one"),
    "inputs and labels": ((X, Y), "TensorDataset"),
    "vectors": (list(X), "one sample, or a batch of numbers"),
    "unlike widths": ([X, X[:, :2]], "unlike sizes: batch 0 has"),
    "used up": (iter([]), "read before"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_data_is_refused(kind):
    source, said = REFUSED[kind]
    with pytest.raises(ValueError, match=said):
        Unlabeled.of(source, torch.nn.Identity())


def test_samples_of_unlike_sizes_are_refused_by_their_sizes():
    unlabeled = Unlabeled.of(DataLoader([torch.ones(2), torch.ones(3)]))
    with pytest.raises(ValueError, match=r"unlike sizes: .*\(2,\).*\(3,\).*`collate_fn` pads"):
        unlabeled.first(2)


TURNS = itertools.count(1)


@pytest.mark.parametrize("collate", [None, lambda rows: torch.stack(rows).roll(next(TURNS), 0)])
def test_data_that_differ_when_they_are_read_again_are_refused(collate):
    source = Noisy() if collate is None else DataLoader(list(torch.randn(40, 3)), collate_fn=collate)
    with pytest.raises(ValueError, match="not the same twice"):
        Unlabeled.of(source).require_repeatable()
    Unlabeled.of(TensorDataset(X)).require_repeatable()
