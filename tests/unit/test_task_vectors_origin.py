"""Experts of another pre-training than θ₀: an error that names them, unless it is asked for."""

from copy import deepcopy

import pytest
import torch
from world import Encoder, make_world

import fusion_tinting as ft

pytestmark = pytest.mark.quick


@pytest.fixture
def world():
    """The second expert was fine-tuned from another pre-trained model."""
    world = make_world()
    torch.manual_seed(3)
    world.experts["dogs"] = Encoder()
    return world


def test_an_expert_of_another_pretraining_is_named_with_its_distance_and_the_way_out(world):
    reason = r"`dogs` was not fine-tuned.*cosine.* is -?0\.0\d,.*`task_vectors.pretraining=different`"
    with pytest.raises(ValueError, match=reason):
        world.tint()
    with pytest.raises(ValueError, match=reason):
        ft.TaskVectors.from_models(world.pretrained, world.experts, dtype="fp16")


def test_merged_around_the_anchor_when_asked_for(world):
    vectors = ft.TaskVectors.from_models(world.pretrained, world.experts, pretraining="different")
    lam = torch.zeros(len(vectors.names), 3)
    lam[:, 1] = 1
    merged = vectors.views(ft.merge(vectors, lam))
    for name, parameter in world.experts["dogs"].named_parameters():
        torch.testing.assert_close(merged[name], parameter.data)
    tinted = world.tint(task_vectors={"pretraining": "different"})
    assert torch.isfinite(tinted.history.values).all()


def test_an_artifact_of_different_pretraining_loads_without_being_told(world, tmp_path):
    tinted = world.tint(task_vectors={"pretraining": "different"}, run_dir=tmp_path)
    again = ft.TintedModel.load(tmp_path, **world.models())
    x = torch.randn(3, 5)
    assert torch.equal(again(x, "dogs"), tinted(x, "dogs"))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1e-15, 1e15])
def test_fine_tuning_is_told_by_direction_not_by_scale(factor):
    """A shrunk or grown copy, and a base of zeros, are no other pre-training."""
    world = make_world()
    for model in (world.pretrained, *world.experts.values()):
        for parameter in model.parameters():
            parameter.data *= factor
    ft.TaskVectors.from_models(world.pretrained, world.experts)


def test_norms_and_biases_do_not_count(world):
    """They are alike in all models."""
    dogs = deepcopy(world.experts["dogs"])
    for parameter in (*world.pretrained.parameters(), *dogs.parameters()):
        if parameter.ndim == 1:
            parameter.data.fill_(100.0)
    with pytest.raises(ValueError, match="was not fine-tuned"):
        ft.TaskVectors.from_models(world.pretrained, {"dogs": dogs})


def test_an_unknown_choice_is_named(world):
    with pytest.raises(ValueError, match=r"Unknown task_vectors.pretraining `others`"):
        world.tint(task_vectors={"pretraining": "others"})
