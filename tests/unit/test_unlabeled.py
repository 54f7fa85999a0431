import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from fusion_tinting.method.schedule import batch_schedule, task_order
from fusion_tinting.run.unlabeled import Unlabeled, input_of

pytestmark = pytest.mark.quick

ROWS = torch.arange(20.0).view(10, 2)


def read(unlabeled, schedule):
    return [batch.tolist() for batch in unlabeled.batches(schedule)]


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(TensorDataset(ROWS, torch.zeros(10)), batch_size=3, shuffle=True),
        [ROWS[:4], ROWS[4:]],
        iter([(ROWS[:4], torch.zeros(4)), (ROWS[4:], torch.zeros(6))]),
        [{"image": ROWS, "label": torch.zeros(10)}],
    ],
    ids=["loader", "tensors", "tuples", "mapping"],
)
def test_every_sample_has_its_index_whatever_the_source(source):
    unlabeled = Unlabeled.of(source)
    assert len(unlabeled) == 10
    assert read(unlabeled, [[3, 1], [9]]) == [[[6, 7], [2, 3]], [[18, 19]]]
    assert read(unlabeled.subset([5, 7]), [[1]]) == [[[14, 15]]]


def test_a_pool_too_large_for_memory_is_read_batch_by_batch(monkeypatch):
    monkeypatch.setattr("fusion_tinting.run.unlabeled.CACHE_BYTES", 8)
    unlabeled = Unlabeled.of(DataLoader(TensorDataset(ROWS)))
    assert read(unlabeled, [[3, 1], [9]]) == [[[6, 7], [2, 3]], [[18, 19]]]
    assert unlabeled._cached is None


def test_a_loaders_sampler_says_which_samples_there_are():
    loader = DataLoader(TensorDataset(ROWS), sampler=SubsetRandomSampler([7, 2]))
    assert read(Unlabeled.of(loader), [[0, 1]]) == [ROWS[[2, 7]].tolist()]


def test_a_loader_of_ready_batches_is_cut_into_samples():
    loader = DataLoader([ROWS[:4], ROWS[4:]], batch_size=None)
    assert len(Unlabeled.of(loader)) == 10


def test_keyword_inputs_survive():
    batch = {"input_ids": ROWS, "attention_mask": ROWS + 1, "labels": torch.zeros(10)}
    (found,) = Unlabeled.of([batch]).batches([[1, 2]])
    assert found.keys() == {"input_ids", "attention_mask"}
    assert torch.equal(found["attention_mask"], ROWS[1:3] + 1)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ([1, 2], 1),
        ((1, 2), 1),
        (3, 3),
        ({"image": 4, "label": 5, "idx": 6}, 4),
        ({"tokens": 7, "labels": 8}, 7),
        ({"a": 1, "b": 2, "labels": 8}, {"a": 1, "b": 2}),
    ],
)
def test_the_input_of_a_batch(batch, expected):
    assert input_of(batch) == expected


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(ROWS[:0]))])
def test_empty_data_is_refused(empty):
    with pytest.raises(ValueError, match="empty"):
        Unlabeled.of(empty)


def test_a_dataset_is_its_samples():
    class Squares(torch.utils.data.Dataset):  # raises no IndexError: a loop over it would not end
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.tensor([index**2.0]), 0

    assert read(Unlabeled.of(Squares()), [[2, 1]]) == [[[4.0], [1.0]]]


def test_the_schedule_is_one_shuffled_epoch_after_another():
    schedule = batch_schedule(10, 4, 5, seed=0, task="cats")
    assert schedule.shape == (5, 4)
    assert sorted(schedule.flatten()[:10].tolist()) == list(range(10))
    assert sorted(schedule.flatten()[10:].tolist()) == list(range(10))
    assert torch.equal(schedule, batch_schedule(10, 4, 5, seed=0, task="cats"))
    assert not torch.equal(schedule, batch_schedule(10, 4, 5, seed=1, task="cats"))
    assert not torch.equal(schedule, batch_schedule(10, 4, 5, seed=0, task="dogs"))


def test_a_longer_run_starts_with_the_same_batches():
    assert torch.equal(
        batch_schedule(10, 4, 5, seed=0, task="a"), batch_schedule(10, 4, 9, seed=0, task="a")[:5]
    )


def test_task_order_is_random_and_independent_of_listing():
    tasks = ["a", "b", "c", "d"]
    orders = {tuple(task_order(tasks, step, seed=0)) for step in range(50)}
    assert len(orders) > 10
    assert all(task_order(tasks[::-1], s, 0) == task_order(tasks, s, 0) for s in range(50))
