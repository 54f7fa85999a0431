"""The top of a distribution over a vocabulary stands for the whole of it, in little memory."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fusion_tinting as ft
from fusion_tinting.method import objectives
from fusion_tinting.run import top_predictions
from fusion_tinting.run.cache import cache_folder
from fusion_tinting.run.files import read_tensors, write_tensors
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.top_predictions import TOP, TopPredictions, dense

pytestmark = pytest.mark.quick

N, V, T = 40, 2000, 24
TASKS = ("cats", "dogs")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path / "cache"))


def random_logits(scale=3.0, shape=(5, 50, 4)):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [50, 64])
def test_all_classes_are_the_exact_distribution(k):
    logits = random_logits()
    torch.testing.assert_close(TopPredictions.of(logits, k).logits(), logits.log_softmax(1))


@pytest.mark.parametrize("scale", [0, 1e-3, 1, 30, 1e4])
@pytest.mark.parametrize("k", [1, 7, 49])
def test_what_it_stands_for_is_a_distribution_with_the_same_top(scale, k):
    logits = random_logits(scale)
    told = TopPredictions.of(logits, k).logits()
    assert told.shape == logits.shape and told.isfinite().all()
    torch.testing.assert_close(told.exp().sum(1), torch.ones(5, 4), rtol=0, atol=1e-6)
    top = logits.topk(k, dim=1)
    torch.testing.assert_close(told.gather(1, top.indices), logits.log_softmax(1).gather(1, top.indices))
    assert (told <= told.gather(1, top.indices[:, :1])).all()  # no other class is above the first
    if scale:
        assert torch.equal(told.argmax(1), logits.argmax(1))


def test_what_remains_is_shared_evenly():
    told = TopPredictions.of(random_logits(), 7).logits().exp()
    others = told.sort(dim=1, descending=True).values[:, 7:]
    assert torch.equal(others, others[:, :1].expand_as(others))


@pytest.mark.parametrize("shape", [(6, 50), (6, 50, 3), (6, 50, 3, 2)])
def test_outputs_of_any_shape(shape):
    logits = random_logits(shape=shape)
    torch.testing.assert_close(TopPredictions.of(logits, 50).logits(), logits.log_softmax(1))


def test_the_error_of_the_soft_loss_shrinks_with_k():
    expert, output = random_logits(2.0), random_logits(1.0).flip(0)
    true = objectives.soft(output, expert)
    errors = [
        (objectives.soft(output, TopPredictions.of(expert, k).logits()) - true).abs().mean().item()
        for k in (1, 4, 16, 32, 50)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[0] / 1e3


def test_impossible_classes_are_no_error():
    logits = random_logits()
    logits[:, 3:] = -torch.inf
    told = TopPredictions.of(logits, 3).logits()
    torch.testing.assert_close(told[:, :3].exp(), logits.softmax(1)[:, :3])
    assert told.isfinite().all()


def test_rows_are_as_those_of_a_tensor():
    logits = random_logits()
    rows = torch.tensor([3, 0, 3])
    kept = TopPredictions.of(logits, 50)
    torch.testing.assert_close(kept[rows].logits(), logits.log_softmax(1)[rows])
    assert len(kept) == 5 and len(kept[rows]) == 3
    assert kept.nbytes == 5 * 50 * 4 * (4 + 4)


class Words(nn.Module):
    """Token ids (B, T) -> logits (B, V, T)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.block = nn.Linear(8, 8)
        self.out = nn.Linear(8, V)

    def forward(self, ids):
        hidden = self.embed(ids)
        return 4 * self.out(hidden + self.block(hidden).tanh()).transpose(1, 2)


@pytest.fixture
def language():
    """What `tint` takes: a language model, experts of it, and token ids."""
    torch.manual_seed(0)
    pretrained, experts = Words(), {}
    for task in TASKS:
        experts[task] = copy.deepcopy(pretrained)
        for parameter in experts[task].parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return {
        "pretrained": pretrained,
        "experts": experts,
        "heads": {task: nn.Identity() for task in TASKS},
        "unlabeled": {task: [torch.randint(V, (N, T))] for task in TASKS},
    }


def tint(language, **settings):
    options = {"layer": "out", "sampler": "all", "objective": "soft", "steps": 3, "batch_size": 4}
    return ft.tint(**language, **{**options, **settings}, progress=False)


def predict(language, task="cats", top=TOP, **options):
    inputs = ft.Unlabeled.of(language["unlabeled"][task])
    return ft.predict(language["experts"][task], nn.Identity(), inputs, top=top, **options)


def test_few_classes_or_no_top_are_kept_whole(language, monkeypatch):
    assert predict(language, top=None).shape == (N, V, T)
    monkeypatch.setattr(top_predictions, "MANY_CLASSES", V)
    assert predict(language).shape == (N, V, T)


def test_predictions_keep_the_top(language):
    whole, kept = predict(language, top=None), predict(language)
    assert isinstance(kept, TopPredictions) and kept.ids.shape == (N, TOP, T) and kept.classes == V
    top = whole.log_softmax(1).topk(TOP, dim=1)
    torch.testing.assert_close(kept.log_probs, top.values)
    assert torch.equal(dense(kept).argmax(1), whole.argmax(1))


@pytest.mark.parametrize("objective", ["soft", "hard"])
def test_a_tinting_by_all_of_the_top_is_that_by_the_whole(language, monkeypatch, objective):
    monkeypatch.setattr("fusion_tinting.run.top_predictions.TOP", V)
    by_top = tint(language, objective=objective)
    monkeypatch.setattr(top_predictions, "MANY_CLASSES", V)
    by_whole = tint(language, objective=objective)
    torch.testing.assert_close(by_top.history.values, by_whole.history.values, rtol=1e-4, atol=1e-5)


def test_objectives_of_values_get_the_values(language):
    """`l1`, and what a caller writes, may read more than a distribution."""
    seen = []

    def squares(output, expert):
        seen.append(expert.sum(1).mean().item())
        return F.mse_loss(output, expert, reduction="none").flatten(1).mean(1)

    tint(language, objective=squares, steps=1)
    whole = torch.cat([predict(language, task, top=None) for task in TASKS])
    assert min(seen) > whole.log_softmax(1).sum(1).max() + 100  # logits, not log-probabilities
    tint(language, objective="l1", steps=1)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that a tensor had."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0) if sizes else self.numbers
        return made


def test_no_tensor_ever_holds_the_vocabulary_for_all_samples(language, monkeypatch):
    monkeypatch.setattr("fusion_tinting.run.experts.BATCH_BYTES", 4 * 4 * V * T)  # four samples at a time
    with Largest() as largest:
        tint(language)
    assert largest.numbers == 4 * V * T  # a batch, of teacher or pupil: a tenth of them all


def test_a_sample_larger_than_a_batch_may_be_goes_alone(language, monkeypatch):
    monkeypatch.setattr("fusion_tinting.run.experts.BATCH_BYTES", 1)
    with Largest() as largest:
        kept = predict(language)
    assert largest.numbers == max(V * T, N * TOP * T)
    assert len(kept) == N


class Rank(Processes):
    """One of two, played one after the other: the first's parts are kept for the second to add."""

    count = 2

    def __init__(self, rank, sent):
        super().__init__()
        self.rank, self.sent = rank, sent

    def sum(self, tensor):
        if self.rank == 1:
            self.sent.append(tensor.clone())
            return tensor
        return tensor + self.sent.pop(0)


def test_two_processes_predict_a_half_each_and_get_the_whole(language):
    sent = []
    predict(language, processes=Rank(1, sent))
    shared, alone = predict(language, processes=Rank(0, sent)), predict(language)
    assert sent == []
    assert torch.equal(shared.ids, alone.ids) and shared.ids.dtype == torch.int32
    torch.testing.assert_close(shared.log_probs, alone.log_probs)


def remembered(language, top=TOP):
    inputs = {task: ft.Unlabeled.of(source) for task, source in language["unlabeled"].items()}
    return ft.predict_experts(
        language["experts"], language["heads"], inputs, progress=False, cache=True, top=top
    )


def test_a_second_run_takes_them_from_disk(language, monkeypatch):
    first = remembered(language)
    asked = []
    predict = ft.predict
    monkeypatch.setattr(
        "fusion_tinting.run.experts.predict", lambda *a, **k: asked.append(a) or predict(*a, **k)
    )
    second = remembered(language)
    assert asked == []
    for task in TASKS:
        assert torch.equal(first[task].logits(), second[task].logits())
    remembered(language, top=TOP // 2)
    remembered(language, top=None)
    assert len(asked) == 2 * len(TASKS)


def _without_ids(tensors):
    del tensors["ids"]


def _beyond_the_classes(tensors):
    tensors["ids"] += V


def _not_a_number(tensors):
    tensors["log_probs"][0, 0, 0] = torch.nan


def _of_another_length(tensors):
    tensors["log_probs"] = tensors["log_probs"][:-1]


@pytest.mark.parametrize("harm", [_without_ids, _beyond_the_classes, _not_a_number, _of_another_length])
def test_a_file_of_other_content_is_not_believed(language, harm):
    first = remembered(language)
    path = next((cache_folder() / "predictions").glob("*"))
    tensors, metadata = read_tensors(path)
    harm(tensors)
    write_tensors(path, tensors, metadata)  # whole, and wrong
    with pytest.warns(UserWarning, match="computed again"):
        second = remembered(language)
    assert all(torch.equal(first[task].logits(), second[task].logits()) for task in TASKS)


def test_a_prediction_that_is_not_finite_is_refused(language):
    language["experts"]["cats"].out.bias.data[5] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        predict(language)
