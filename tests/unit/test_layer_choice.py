"""`layer: auto`: the choice is the best layer's, made within its budget, once, and kept."""

import itertools
import json
from copy import deepcopy

import pytest
import torch
from world import make_world

import fusion_tinting as ft
from fusion_tinting import tinting
from fusion_tinting.method.tints import resolve_layer, tintable
from fusion_tinting.run import layer_choice
from fusion_tinting.run.layer_choice import SHARE, choose_layer

OPTIONS = {"layer": "auto", "steps": 30, "update": "joint"}


def stop(*_, **__):
    raise RuntimeError("killed after the choice")


@pytest.mark.quick
@pytest.mark.parametrize("count", [2, 3, 7, 14, 26])
@pytest.mark.parametrize("steps", [40, 500, 2000])
def test_it_takes_a_third_of_the_iterations_or_one_for_each_layer(count, steps):
    rounds = list(layer_choice._rounds(count, int(SHARE * steps)))
    assert rounds[0][0] == count
    assert all(later == 2 * first for (_, first), (_, later) in itertools.pairwise(rounds))
    assert sum(layers * each for layers, each in rounds) <= max(SHARE * steps, count)


def test_every_layer_is_tried_and_the_one_that_agrees_most_is_tinted(world):
    tinted = world.tint(**OPTIONS)
    trials = tinted.info.layer_choice
    assert list(trials) == [
        resolve_layer(world.pretrained, layer).name for layer in tintable(world.pretrained)
    ]
    last = max(map(len, trials.values()))
    final = {layer: values[-1] for layer, values in trials.items() if len(values) == last}
    assert tinted.layer == max(final, key=final.get)
    same = world.tint(**{**OPTIONS, "layer": tinted.layer})
    for name, row in same.coefficients.items():
        assert torch.equal(tinted.coefficients[name], row)


def test_a_layer_in_which_the_experts_differ_most_is_found():
    """Experts that share everything but one block: only there is anything to tint."""
    world = make_world()
    for task, expert in world.experts.items():
        block = deepcopy(expert.blocks[1])
        world.experts[task] = deepcopy(world.pretrained)
        world.experts[task].blocks[1] = block
        block.weight.data.mul_(8)
    assert world.tint(**{**OPTIONS, "steps": 60}).layer == "blocks.1"


def test_the_order_of_the_tasks_does_not_matter(world):
    def reversed_(items):
        return dict(reversed(items.items()))

    other = deepcopy(world)
    other.experts, other.heads = reversed_(world.experts), reversed_(world.heads)
    assert other.tint(**OPTIONS).layer == world.tint(**OPTIONS).layer


def test_a_run_that_is_continued_or_loaded_keeps_its_choice(world, tmp_path, monkeypatch):
    whole = world.tint(**OPTIONS, run_dir=tmp_path / "whole")
    monkeypatch.setattr(tinting, "train", stop)
    with pytest.raises(RuntimeError, match="killed"):
        world.tint(**OPTIONS, run_dir=tmp_path / "killed")
    monkeypatch.undo()
    monkeypatch.setattr(layer_choice, "choose_layer", stop)
    continued = world.tint(**OPTIONS, run_dir=tmp_path / "killed")
    again = world.tint(**OPTIONS, run_dir=tmp_path / "killed")
    loaded = ft.TintedModel.load(tmp_path / "killed", **world.models())
    manifest = json.loads((tmp_path / "killed" / "tinting.json").read_text())
    assert manifest["settings"]["layer"] == "auto"
    assert manifest["layer"] == whole.layer
    assert manifest["layer_choice"] == whole.info.layer_choice
    x = torch.randn(3, 5)
    for model in (continued, again, loaded):
        assert model.layer == whole.layer
        assert torch.equal(model(x, "dogs"), whole(x, "dogs"))


@pytest.mark.quick
def test_the_choice_of_another_run_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tinting, "train", stop)
    with pytest.raises(RuntimeError, match="killed"):
        world.tint(**OPTIONS, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"settings\.seed is 0 there and 1 here"):
        world.tint(**OPTIONS, run_dir=tmp_path, seed=1)


@pytest.mark.quick
def test_a_single_input_is_not_enough(world):
    world.unlabeled["cats"] = [torch.randn(1, 5)]
    with pytest.raises(ValueError, match="`cats` has a single input"):
        world.tint(**OPTIONS)


@pytest.mark.quick
def test_the_model_given_is_not_changed(world):
    model = ft.TintedModel.untrained(world.pretrained, world.experts, world.heads, None)
    before = deepcopy(model.state_dict())
    settings = ft.Settings(layer="auto", steps=30)
    inputs = {task: ft.Unlabeled.of(batches) for task, batches in world.unlabeled.items()}
    predictions = ft.predict_experts(world.experts, world.heads, inputs, progress=False)
    layer, trials = choose_layer(model, inputs, predictions, settings, progress=False)
    assert layer in trials
    assert model.layer is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
