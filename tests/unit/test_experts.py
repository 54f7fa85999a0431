"""What the experts predict is remembered on disk, by content, and never trusted blindly."""

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
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


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def anothers(path):
    os.replace(files()[1], path)


def without_a_checksum(path):
    save_file(load_file(path), path, {"key": path.stem})


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(path.read_bytes()[:-10]), flipped, anothers, without_a_checksum],
)
def test_what_a_damaged_file_holds_is_asked_anew(world, asked, damage):
    first = predictions(world)
    damage(files()[0])
    before = len(asked)
    with pytest.warns(UserWarning, match=f"{files()[0].name}.*computed again"):
        second = predictions(world)
    assert len(asked) > before
    assert all(torch.equal(first[task], second[task]) for task in first)
    assert len(files()) == len(first)  # and is whole now
    predictions(world)


def test_a_cache_that_cannot_be_written_is_a_warning(world, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusion_tinting.run.files.save_file", full)
    with pytest.warns(UserWarning, match=r"cache cannot be used.*No space left.*nothing half-written"):
        predictions(world)
    assert files() == []


def test_a_file_where_the_cache_should_be_is_a_warning(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cache cannot be used"):
        world.tint()


def test_the_cache_can_be_turned_off(world, tmp_path, monkeypatch, asked):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FUSION_TINTING_CACHE", "off")
    predictions(world)
    predictions(world)
    assert len(asked) == 2 * len(world.experts)
    assert not (tmp_path / "home").exists()
    assert not Path("off").exists()


def test_what_was_not_used_for_the_longest_time_makes_room(world, monkeypatch, asked):
    predictions(world)
    foreign = files()[0].with_name("a model of the user.safetensors")
    foreign.write_bytes(bytes(10_000))
    size = sum(path.stat().st_size for path in files() if path != foreign)
    for age, path in enumerate(sorted(files(), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (10**9 + age, 10**9 + age))  # that of cats is the oldest
    monkeypatch.setenv("FUSION_TINTING_CACHE_SIZE", str(size / 1e9))
    predictions(world, **changed_head(world))  # of cats; those of dogs and owls are used
    assert foreign.is_file()
    assert len(files()) == 3 + 1
    assert len(asked) == 3 + 1
    predictions(world)
    assert len(asked) == 3 + 1 + 1
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("FUSION_TINTING_CACHE_SIZE", wrong)
        with pytest.raises(ValueError, match=f"must be a number of gigabytes. Found '{wrong}'"):
            predictions(world)


def test_what_killed_processes_were_writing_is_removed(world):
    dead, own = (
        cache_folder() / "predictions" / f".writing-{pid}-0.safetensors" for pid in (4194305, os.getpid())
    )
    dead.parent.mkdir(parents=True)
    dead.touch()
    own.touch()
    predictions(world)
    assert not dead.exists()
    assert own.exists()
