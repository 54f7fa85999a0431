"""Tasks with objectives of their own: classes beside values."""

import json

import pytest
import torch
from torch import nn

from fusion_tinting import Reads
from fusion_tinting.method.objectives import hard, l1
from fusion_tinting.method.settings import Settings
from fusion_tinting.reporting.tables import agreement_table
from fusion_tinting.run.manifest import Manifest
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.top_predictions import (
    ARG_MAX,
    TOP,
    ClassIds,
    classes_kept,
    dense,
    joined,
    kept,
    read,
)
from fusion_tinting.run.unlabeled import Unlabeled

pytestmark = pytest.mark.quick

EACH = {"cats": "hard", "dogs": "l1", "owls": "soft"}


def test_each_task_has_its_own():
    settings = Settings(objective=EACH)
    assert settings.objective_of("cats") is hard
    assert settings.objective_of("dogs") is l1
    assert Settings(objective="l1").objective_of("anything") is l1


def test_a_task_that_is_not_named_is_an_error():
    with pytest.raises(ValueError, match=r"names none for the task `bees`.*\['cats', 'dogs', 'owls'\]"):
        Settings(objective=EACH).objective_of("bees")


def test_an_objective_that_is_unknown_is_one_for_a_task_too():
    with pytest.raises(ValueError, match="Unknown objective `l2`"):
        Settings(objective={"cats": "l2"})


def test_it_survives_the_manifest(world, tmp_path):
    model = world.tint(objective=EACH, sampler="all", run_dir=tmp_path)
    assert Settings(objective=EACH).to_json()["objective"] == EACH
    assert Manifest.read(tmp_path).settings["objective"] == EACH
    assert Settings(**json.loads(json.dumps(model.info.settings))).objective == EACH
    again = world.tint(objective=EACH, sampler="all", run_dir=tmp_path)
    assert [again.reads(task) is Reads.VALUES for task in EACH] == [False, True, False]


def test_a_mapping_of_equal_objectives_is_one_objective(world):
    one = world.tint(objective="soft")
    several = world.tint(objective=dict.fromkeys(EACH, "soft"))
    assert torch.equal(one.history.values, several.history.values)


def test_agreement_of_values_is_none_of_the_arg_max(world):
    """In the curves and in the closing table: 1 − |output − expert|₁ / |expert|₁."""
    model = world.tint(objective=EACH, sampler="all", steps=1)
    x = torch.cat(world.unlabeled["dogs"])
    ours, theirs = model(x, "dogs"), world.heads["dogs"](world.experts["dogs"].eval()(x))
    by_hand = 1 - ((ours - theirs).abs().mean(1) / theirs.abs().mean(1)).clamp(max=1)
    inputs = {"all": {task: Unlabeled.of(batches) for task, batches in world.unlabeled.items()}}
    table = agreement_table(model, world.experts, world.heads, inputs, "val", Processes())
    shares = dict(table.rows)
    assert shares["dogs"] == pytest.approx(100 * by_hand.mean().item())
    same = (ours.argmax(1) == theirs.argmax(1)).float().mean()
    assert shares["dogs"] != pytest.approx(100 * same.item())


@pytest.mark.parametrize(
    ("objective", "sampler", "expected"),
    [
        ("hard", "all", ARG_MAX),
        ("hard", "confidence_difference", TOP),
        ("soft", "all", TOP),
        ("l1", "all", None),
    ],
)
def test_of_an_expert_only_what_is_read_is_kept(objective, sampler, expected):
    assert classes_kept(Settings(objective=objective, sampler=sampler), "any task") == expected


def segmentation(count=3, classes=5):
    return torch.randn(count, classes, 4, 6, generator=torch.Generator().manual_seed(0))


def test_class_ids_are_the_arg_max_in_a_byte():
    logits = segmentation()
    ids = kept(logits, ARG_MAX)
    assert isinstance(ids, ClassIds)
    assert ids.ids.dtype == torch.uint8 and ids.nbytes == logits[:, 0].numel()
    assert dense(ids).shape == logits.shape
    assert torch.equal(hard(logits, dense(ids)), hard(logits, logits))
    assert torch.equal(dense(ids[torch.tensor([2, 0])]).argmax(1), logits[[2, 0]].argmax(1))
    again = read(joined([ids, ids]).tensors(), "predictions")
    assert torch.equal(dense(again), dense(ids).repeat(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("classes", "dtype"), [(256, torch.uint8), (257, torch.int16), (40000, torch.int32)]
)
def test_class_ids_have_room_for_every_class(classes, dtype):
    logits = torch.zeros(1, classes, 1)
    logits[:, -1] = 1
    ids = ClassIds.of(logits)
    assert ids.ids.dtype == dtype and ids.ids.item() == classes - 1


def test_values_and_single_decisions_are_kept_whole():
    for output in (segmentation(classes=1), torch.randn(3, 5)):
        assert kept(output, ARG_MAX) is output


def test_damaged_class_ids_are_refused():
    found = kept(segmentation(), ARG_MAX).tensors()
    with pytest.raises(ValueError, match="do not fit"):
        ClassIds.from_tensors({**found, "classes": torch.tensor(2)})


class Pixels(nn.Module):
    """Features (B, 6) as class logits at two positions."""

    def __init__(self, classes: int):
        super().__init__()
        self.linear = nn.Linear(6, 2 * classes)

    def forward(self, features):
        return self.linear(features).unflatten(1, (-1, 2))


def test_a_tinting_by_class_ids_is_that_by_the_logits(world, monkeypatch):
    world.heads = {task: Pixels(3 + k) for k, task in enumerate(world.experts)}
    by_ids = world.tint(objective="hard", sampler="all")
    monkeypatch.setattr("fusion_tinting.tinting.classes_kept", lambda settings, task: None)
    by_logits = world.tint(objective="hard", sampler="all")
    assert torch.equal(by_ids.history.values, by_logits.history.values)
    for task in world.experts:
        assert torch.equal(by_ids.tints[task].linear.weight, by_logits.tints[task].linear.weight)


def test_an_expert_that_is_not_finite_is_named_even_where_ids_are_kept(world):
    world.heads = {task: Pixels(3) for task in world.experts}
    world.heads["owls"].linear.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        world.tint(objective="hard", sampler="all")
