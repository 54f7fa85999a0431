"""What the experts predict is remembered on disk, by content, and never trusted blindly."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from world import World

import fusion_tinting as ft
from fusion_tinting.run.cache import cache_folder

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """The tasks whose expert was really run, in order."""
    seen = []
    predict = ft.predict

    def count(encoder, *args, **kwargs):
        seen.append(encoder)
        return predict(encoder, *args, **kwargs)

    monkeypatch.setattr("fusion_tinting.run.experts.predict", count)
    return seen


def predictions(world: World, *, experts=None, heads=None, unlabeled=None):
    inputs = {task: ft.Unlabeled.of(source) for task, source in (unlabeled or world.unlabeled).items()}
    return ft.predict_experts(
        experts or world.experts, heads or world.heads, inputs, progress=False, cache=True
    )


def files():
    return sorted((cache_folder() / "predictions").glob("*"))


def test_a_second_run_asks_no_expert_and_gets_the_same(world, asked):
    first = predictions(world)
    assert len(asked) == len(files()) == len(world.experts)
    second = predictions(world)
    assert len(asked) == len(world.experts)
    assert all(torch.equal(first[task], second[task]) for task in world.experts)


def test_a_tinting_with_remembered_predictions_is_the_same(world, asked):
    first, second = world.tint(steps=4), world.tint(steps=4)
    assert len(asked) == len(world.experts)
    for name, row in first.coefficients.items():
        assert torch.equal(row, second.coefficients[name])


def changed_expert(world):
    experts = {task: copy.deepcopy(expert) for task, expert in world.experts.items()}
    with torch.no_grad():
        next(experts["cats"].parameters()).view(-1)[0] += 1e-3
    return {"experts": experts}


def changed_head(world):
    heads = {task: copy.deepcopy(head) for task, head in world.heads.items()}
    with torch.no_grad():
        next(heads["cats"].parameters()).view(-1)[0] += 1e-3
    return {"heads": heads}


@pytest.mark.parametrize("change", [changed_expert, changed_head])
def test_another_expert_or_head_is_asked_anew(world, asked, change):
    predictions(world)
    predictions(world, **change(world))
    assert len(asked) == len(world.experts) + 1


def test_one_changed_sample_is_noticed(world, asked):
    predictions(world)
    world.unlabeled["cats"][2][7] += 1e-3
    predictions(world)
    assert len(asked) == len(world.experts) + 1


def test_another_activation_is_another_expert(world, asked):
    head = torch.nn.Sequential(world.heads["cats"], torch.nn.ReLU())
    other = torch.nn.Sequential(world.heads["cats"], torch.nn.Tanh())
    predictions(world, heads={**world.heads, "cats": head})
    predictions(world, heads={**world.heads, "cats": other})
    assert len(asked) == len(world.experts) + 1


def test_data_of_unknown_content_is_not_remembered(world, monkeypatch):
    monkeypatch.setattr("fusion_tinting.run.unlabeled.CACHE_BYTES", 0)
    predictions(world)
    assert files() == []


def test_data_with_a_version_is_remembered_by_it(world, monkeypatch, asked):
    monkeypatch.setattr("fusion_tinting.run.unlabeled.CACHE_BYTES", 0)
    images = torch.cat(world.unlabeled["cats"])
    expert = {"cats": world.experts["cats"]}
    for version, known in (("a", 1), ("a", 1), ("b", 2)):
        unlabeled = {"cats": ft.Unlabeled(images, version=version)}
        ft.predict_experts(expert, world.heads, unlabeled, progress=False, cache=True)
        assert len(asked) == known
    few = {"cats": ft.Unlabeled(images, version="b").subset(range(10))}
    ft.predict_experts(expert, world.heads, few, progress=False, cache=True)
    assert len(asked) == 3


@pytest.mark.parametrize("damage", ["cut short", "another's"])
def test_a_damaged_file_is_named(world, damage):
    predictions(world)
    path = files()[0]
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        save_file({"predictions": torch.zeros(3, 2)}, path, {"key": "other"})
    with pytest.raises(ValueError, match=f"{path.name}.*can be deleted"):
        predictions(world)


def test_a_full_disk_leaves_nothing_half_written(world, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusion_tinting.run.files.save_file", full)
    with pytest.raises(OSError, match=r"No space left.*nothing half-written"):
        predictions(world)
    assert files() == []
