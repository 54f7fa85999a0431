"""What users hand in that is not what it seems: loaders, folders, functions, and data that fail late."""

import os
import types
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, SequentialSampler
from world import make_world

import fusion_tinting as ft

pytestmark = pytest.mark.quick

X = torch.arange(24.0).view(8, 3)


class Halving(DataLoader):
    def __iter__(self):
        return (batch / 2 for batch in super().__iter__())


class Twofold(DataLoader):
    def _get_iterator(self):
        iterator = super()._get_iterator()
        return (batch * 2 for batch in iterator)


class FirstOnly(SequentialSampler):
    def __iter__(self):
        return iter([0, 1])


class Ends(BatchSampler):
    def __iter__(self):
        return iter([[0], [7]])


LOADERS = {
    "an iterator of its own": (Halving(X, batch_size=3), X / 2),
    "an iterator beneath": (Twofold(X, batch_size=3), X * 2),
    "a sampler of fewer": (DataLoader(X, sampler=SequentialSampler(range(5))), X[:5]),
    "a sampler with an iterator of its own": (DataLoader(X, sampler=FirstOnly(X)), X[:2]),
    "a batch sampler with one": (DataLoader(X, batch_sampler=Ends(range(8), 2, False)), X[[0, 7]]),
    "a share": (
        DataLoader(X, sampler=DistributedSampler(X, num_replicas=4, rank=1, shuffle=False)),
        X[1::4],
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_gives_what_it_would_give_its_user(kind):
    loader, expected = LOADERS[kind]
    unlabeled = ft.Unlabeled.of(loader, nn.Identity())
    (found,) = unlabeled.batches([range(len(unlabeled))])
    assert torch.equal(found, expected)


class Failing(Dataset):
    def __init__(self, rows, error):
        self.rows, self.error = rows, error

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index == 33 and self.error is not None:
            raise self.error
        return self.rows[index]


@pytest.mark.parametrize("error", [KeyError("33.png"), FileNotFoundError("33.png"), AttributeError("mode")])
def test_a_sample_that_cannot_be_read_is_an_error_of_its_task(error):
    world = make_world()
    world.unlabeled["dogs"] = Failing(torch.cat(world.unlabeled["dogs"]), error)
    with pytest.raises(
        ValueError, match=f"Task `dogs`: .*samples? .* cannot be read: {type(error).__name__}"
    ):
        world.tint()


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("column", [0, 3])
def test_batches_that_are_sorted_are_not_compared_with_unsorted_ones(descending, column):
    world = make_world()
    world.unlabeled["dogs"] = torch.cat(world.unlabeled["dogs"])
    with pytest.raises(ValueError, match=r"Task `.*`: The output of a sample differs with .* their order"):
        world.tint(inputs=lambda batch: batch[batch[:, column].argsort(descending=descending)])


def test_an_objective_that_is_not_finite_at_once_is_told_from_a_rate_that_is_too_large():
    with pytest.raises(ValueError, match=r"in iteration 0\. Check what the objective makes of the outputs"):
        make_world().tint(objective=lambda output, expert: output.sum(1) * torch.inf)


class ById(nn.Module):
    """Words by their ids; what is read of a mapping of keyword arguments is found by name alone."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)

    def forward(self, **batch):
        return self.words(batch["ids"]).mean(1)


def by_id():
    torch.manual_seed(0)
    world = make_world()
    world.pretrained = ById()
    for task in world.experts:
        world.experts[task] = ById()
        world.experts[task].load_state_dict({"words.weight": world.pretrained.words.weight + 0.1})
        ids = torch.randint(9, (40, 4))
        world.unlabeled[task] = [{"ids": ids, "labels": torch.ones(40)}]
    return world


def test_an_encoder_that_takes_names_alone_is_given_names():
    world = by_id()
    tinted = world.tint(steps=1)
    inputs = {"ids": world.unlabeled["cats"][0]["ids"]}
    assert tinted(inputs, task="cats").shape == (40, 3)


def test_a_sample_that_the_model_cannot_take_is_found_among_its_batch():
    world = by_id()
    world.unlabeled["owls"][0]["ids"][39, 2] = 12  # in the last of forty
    with pytest.raises(
        ValueError, match=r"Task `owls`: the model cannot take one of the samples 0 to 39: IndexError"
    ):
        world.tint()


def test_infinite_inputs_of_a_loss_that_is_not_finite_are_found():
    world = make_world()
    world.pretrained = nn.Sequential(nn.Linear(5, 6), nn.Tanh())  # of which outputs are finite, but not ∂λ
    world.experts = {task: deepcopy(world.pretrained) for task in world.experts}
    for expert in world.experts.values():
        expert[0].bias.data += 0.1
    world.unlabeled["dogs"][2][5, 1] = torch.inf
    with pytest.raises(ValueError, match="Of `dogs` sample 25 holds NaN or infinite numbers"):
        world.tint(batch_size=40)


def test_a_folder_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    make_world().tint(run_dir="run", on_step=lambda step, history: os.chdir(tmp_path / "other"))
    assert (tmp_path / "run" / "tinting.json").is_file() and not any((tmp_path / "other").iterdir())


def test_files_of_the_user_among_tints_are_left(tmp_path):
    mine = tmp_path / "tints" / "mine.safetensors"
    mine.parent.mkdir()
    mine.write_text("mine")
    model = make_world().tint(run_dir=tmp_path)
    model.save(tmp_path)  # once more, over itself
    make_world(["cats", "dogs"]).tint().save(tmp_path)
    assert mine.read_text() == "mine"
    assert {path.stem for path in mine.parent.iterdir()} == {"mine", "cats", "dogs"}


@pytest.mark.parametrize("table", [ft.SAMPLERS, ft.OBJECTIVES])
def test_what_a_name_means_cannot_be_changed(table):
    name = next(iter(table))
    with pytest.raises(TypeError, match="does not support item assignment"):
        table[name] = table["own"] = lambda output, expert: output[:, 0]


@pytest.mark.parametrize("on_step", [lambda: None, lambda step: None, lambda step, history, *, bar: None])
def test_a_function_for_steps_takes_step_and_history(on_step):
    with pytest.raises(ValueError, match=r"`on_step` is called with \(step, history\)"):
        make_world().tint(on_step=on_step)


def test_gradients_that_are_turned_off_between_steps_are_on_in_the_next():
    quiet = make_world().tint(on_step=lambda step, history: torch.set_grad_enabled(False))
    assert torch.equal(quiet.history.values, make_world().tint().history.values)


@pytest.mark.parametrize("given", [{"info": {"split": "val"}}, {"model_class": dict}, {"processes": "cpu"}])
def test_what_hosts_give_is_of_its_kind(given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be a"):
        make_world().tint(**given)


def test_no_task_is_no_run():
    world = make_world()
    world.experts = world.heads = world.unlabeled = {}
    with pytest.raises(ValueError, match="There are no tasks"):
        world.tint(update="joint")


class Opaque:
    """Says nothing of itself, as PyTorch's own namespaces of foreign classes do."""

    def __getattr__(self, name):
        raise RuntimeError("not registered")


@pytest.mark.parametrize("thing", [types, torch.classes, Opaque()], ids=["module", "namespace", "opaque"])
def test_models_may_hold_what_cannot_be_looked_into(thing, tmp_path):
    world = make_world()
    for model in (world.pretrained, *world.experts.values()):
        model.forward_pre = lambda: thing  # closes over it
    first = world.tint(run_dir=tmp_path)
    again = world.tint(run_dir=tmp_path)
    assert all(torch.equal(row, again.coefficients[name]) for name, row in first.coefficients.items())


def test_distributions_over_many_classes_teach_whole():
    world = make_world(["cats"])
    world.heads["cats"] = nn.Linear(6, 2000)  # an untrained head: all classes are about as likely
    inputs = ft.Unlabeled.of(world.unlabeled["cats"])
    told = ft.predict(world.experts["cats"], world.heads["cats"], inputs, top=64)
    with torch.no_grad():
        expected = world.heads["cats"](world.experts["cats"].eval()(torch.cat(world.unlabeled["cats"])))
    torch.testing.assert_close(told, expected)


def test_parts_take_what_the_whole_takes():
    world = make_world()
    vectors = ft.TaskVectors.from_models(world.pretrained, world.experts)
    lam = [[0.1, 0.2, 0.3]] * len(vectors.slots)
    assert torch.equal(ft.merge(vectors, lam), ft.merge(vectors, torch.tensor(lam)))
    inputs = torch.randn(3, 5)
    told = ft.predict(world.experts["cats"], world.heads["cats"], inputs)
    assert torch.equal(
        told, ft.predict(world.experts["cats"], world.heads["cats"], ft.Unlabeled.of(inputs))
    )


@pytest.mark.parametrize("storage", ["disk", "Memory", None])
def test_a_run_is_loaded_into_a_storage_that_there_is(storage, tmp_path):
    world = make_world()
    world.tint(run_dir=tmp_path, steps=0)
    with pytest.raises(ValueError, match=f"Unknown storage `{storage}`"):
        ft.TintedModel.load(tmp_path, **world.models(), storage=storage)


def test_a_folder_that_is_called_as_a_lock_is_left(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(IsADirectoryError, match=r"`.*\.lock` is a folder; expected a file"):
        make_world().tint(run_dir=tmp_path)
    assert (tmp_path / ".lock").is_dir()


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(6, track_running_stats=False), nn.SyncBatchNorm(6, 1e-5, 0.1, True, False)]
)
def test_a_norm_over_the_batch_alone_is_refused(norm):
    world = make_world()
    for model in (world.pretrained, *world.experts.values()):
        model.norm = norm
    with pytest.raises(ValueError, match=r"`norm` a .*BatchNorm.*: it has no running statistics"):
        world.tint()


@pytest.mark.parametrize("least", [3, 20])
def test_a_model_that_looks_at_large_batches_whole_is_refused(least):
    def centered(features):
        return features - features.mean(0) * (len(features) >= least)

    world = make_world()
    world.heads["owls"] = nn.Sequential(nn.Linear(6, 4), Doing(centered))
    with pytest.raises(ValueError, match="Task `owls`: what the model makes of the first sample differs"):
        world.tint(steps=10)


class Doing(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, features):
        return self.change(features)


class Means(nn.Module):
    """The mean over the positions of a text, padded or not."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 6)

    def forward(self, input_ids):
        return self.words(input_ids).mean(1)


@pytest.mark.parametrize("lengths", [(6, 6, 6, 3), (3, 3, 6), (4, 6, 3)])
def test_texts_that_are_padded_without_a_mask_are_refused_whichever_is_the_longest(lengths):
    torch.manual_seed(0)
    world, base = make_world(), Means()
    world.pretrained, world.experts = base, {task: deepcopy(base) for task in world.experts}
    for expert in world.experts.values():
        expert.words.weight.data += 0.2 * torch.randn_like(expert.words.weight)
    texts = [torch.randint(1, 20, (length,)) for length in lengths * 4]

    def padded(rows):
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    world.unlabeled = {task: DataLoader(texts, batch_size=4, collate_fn=padded) for task in world.experts}
    with pytest.raises(ValueError, match=r"differs with the other samples in its batch.* mask"):
        world.tint()
