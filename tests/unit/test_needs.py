"""What an adaptation will hold in memory, said before it begins."""

import pytest
import torch
from torch import nn
from world import TASKS, make_world

import fusion_tinting as ft
from fusion_tinting.run import needs
from fusion_tinting.run.needs import Needs, activations
from fusion_tinting.run.unlabeled import Unlabeled

pytestmark = pytest.mark.quick


def of(world, **settings) -> Needs:
    return Needs.of(world.pretrained, world.heads, ft.Settings.from_options(settings))


@pytest.fixture
def world():
    return make_world()


def numbers(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_float32_model_holds_four_bytes_for_each_number(world):
    encoder, heads = numbers(world.pretrained), sum(map(numbers, world.heads.values()))
    held = of(world, layer="block:1")
    assert held.model == 4 * (encoder + heads)
    assert held.experts == 4 * encoder * (1 + len(TASKS))
    assert held.gradients == 4 * encoder
    block = numbers(world.pretrained.blocks[1])
    assert held.tints == 12 * len(TASKS) * block + 4 * block
    assert of(world, layer="block:1", update="joint") == held  # each is stepped as soon as it was taught
    assert of(world, layer="head", update="joint").tints == 16 * heads
    assert of(world, layer="head", average=True).tints == 16 * heads + 4 * max(
        map(numbers, world.heads.values())
    )
    assert of(world, layer=None, lr_tints=0.0).tints == 0


def test_half_precision_and_other_places_hold_less(world):
    encoder = numbers(world.pretrained)
    largest = max(parameter.numel() for parameter in world.pretrained.parameters())
    assert of(world, task_vectors={"dtype": "fp16"}).experts == encoder * (4 + 2 * len(TASKS))
    assert of(world, task_vectors={"storage": "stream"}).experts == 0
    assert of(world, task_vectors={"gradients": "arriving"}).gradients == 4 * largest
    for model in (world.pretrained, *world.heads.values()):
        model.bfloat16()
    assert of(world).experts == 2 * encoder * (1 + len(TASKS))
    assert of(world).gradients == 2 * largest
    assert of(world, task_vectors={"gradients": "whole"}).gradients == 2 * encoder


def test_too_little_memory_is_said_before_an_expert_is_loaded(world, monkeypatch):
    monkeypatch.setattr(needs, "available", lambda device: 1000.0)
    loaded = []

    class Experts(dict):
        def __getitem__(self, task):
            loaded.append(task)
            return super().__getitem__(task)

    world.experts = Experts(world.experts)
    with pytest.raises(
        ValueError, match=r"Too little memory: this needs .* GB \(model .*experts .*tints.*stream"
    ):
        world.tint()
    assert not loaded


def test_a_finished_run_is_loaded_where_there_is_no_room_to_learn(world, monkeypatch, tmp_path):
    learned = world.tint(run_dir=tmp_path)
    monkeypatch.setattr(needs, "available", lambda device: 1000.0)
    loaded = world.tint(run_dir=tmp_path)
    assert all(row.equal(loaded.coefficients[name]) for name, row in learned.coefficients.items())


def test_activations_are_those_of_a_batch_and_fewer_where_blocks_are_computed_again(world):
    blocks = (nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6)) for _ in range(3))
    world.pretrained.blocks = nn.ModuleList(blocks)
    inputs = Unlabeled.of(world.unlabeled["cats"], world.pretrained)
    before = [parameter.requires_grad for parameter in world.pretrained.parameters()]

    def held(**settings) -> int:
        options = ft.Settings.from_options(settings)
        return activations(world.pretrained, inputs, options, torch.device("cpu"))

    assert held(batch_size=8) > 8 * 4 * 6 * 3  # three blocks keep six numbers each
    assert held(batch_size=16) == 2 * held(batch_size=8)
    assert held(batch_size=8, gradient_checkpointing=True) < held(batch_size=8)
    assert before == [parameter.requires_grad for parameter in world.pretrained.parameters()]
    assert all(parameter.grad is None for parameter in world.pretrained.parameters())


def test_a_groups_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "current").write_text("2000\n")
    monkeypatch.setattr(needs, "LIMITS", (tmp_path / "max", tmp_path / "current"))
    assert needs.available(torch.device("cpu")) == 3000
    (tmp_path / "memory.stat").write_text("anon 900\nfile 1100\ninactive_file 700\nactive_file 300\n")
    assert needs.available(torch.device("cpu")) == 4000  # files that were read make room
    (tmp_path / "max").write_text("max\n")
    assert needs.available(torch.device("cpu")) > 1e6


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: False)
    needs.require_precision(torch.device("cpu"), [nn.Linear(2, 2).bfloat16()])
    needs.require_precision(torch.device("cuda"), [nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="of bfloat16, which `cuda` does not compute in"):
        needs.require_precision(torch.device("cuda"), [nn.Linear(2, 2).bfloat16()])
