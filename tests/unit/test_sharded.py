"""Two processes of torch.distributed against one: the work shared out, and the model too, by FSDP2."""

import json
from pathlib import Path

import forked
import pytest
import torch
from processes_of_a_group import adapt, break_off, die, resume, tensors_of, world_of
from safetensors.torch import load_file
from torch import Tensor
from world import make_world

import fusion_tinting as ft
from fusion_tinting.run import checkpoint

CASES = [
    ("torch", "float32", "joint", "blocks.1", "memory"),
    ("torch, one model", "float32", "joint", "blocks.1", "memory"),
    ("torch, one model", "float32", "sequential", "head", "host"),
    ("torch, one model", "float32", "sequential", "blocks", "memory"),
    ("torch, one model", "bfloat16", "joint", "blocks.0", "memory"),
    ("fabric", "float32", "joint", "blocks.1", "memory"),
    ("fabric, one model", "float32", "sequential", "stem", "memory"),
]


def options(update: str, layer: str, storage: str) -> dict:
    """Settings of a run."""
    task_vectors = {"storage": storage}
    return {
        "update": update, "layer": layer, "sampler": "all", "average": True, "task_vectors": task_vectors,
    }  # fmt: skip


def two(function, *arguments: str, folder: Path) -> list[str]:
    """Let two processes call a function; what each has written."""
    started = [
        forked.start(function, str(rank), "2", *arguments, folder=folder, environment={}) for rank in (0, 1)
    ]
    return [forked.end(process, output, seconds=120) for process, output in started]


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor], close: float = 1e-5) -> None:
    """Compare what a process ended with, but for what it holds."""
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"held"}:
        torch.testing.assert_close(found[name], wanted[name], rtol=10 * close, atol=close, msg=name)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What each of two processes ended with in every case: `<number of the case>-<rank>.safetensors`."""
    folder = tmp_path_factory.mktemp("group")
    two(adapt, json.dumps([(*case[:2], options(*case[2:])) for case in CASES]), folder=folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_equal_one(together, case):
    host, kind, update, layer, _ = case
    alone = tensors_of(world_of(kind).tint(**options(update, layer, "memory")))
    for rank in (0, 1):
        tensors = load_file(together / f"{CASES.index(case)}-{rank}.safetensors")
        equal(tensors, alone, 1e-5 if kind == "float32" else 2e-2)
        share = int(tensors["held"]) / int(alone["held"])
        assert share <= 0.56 if "one model" in host else share == 1


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Two begin and one ends it, in `two`; one begins and two end it, in `one`, and load it once more."""
    settings = options("joint", "blocks.1", "memory")
    break_off(None, str(tmp_path / "one"), settings)
    two(resume, json.dumps(settings), folder=tmp_path)
    wanted = tensors_of(make_world().tint(**settings))
    steps = []
    resumed = make_world().tint(
        **settings, run_dir=tmp_path / "two", on_step=lambda step, _: steps.append(step)
    )
    assert steps == [2, 3]
    equal(tensors_of(resumed), wanted)
    for rank in (0, 1):
        equal(load_file(tmp_path / f"resumed-{rank}.safetensors"), wanted)
        equal(load_file(tmp_path / f"loaded-{rank}.safetensors"), wanted)
    loaded = ft.TintedModel.load(tmp_path / "one", **make_world().models())
    equal(tensors_of(loaded), wanted)


def test_who_is_left_is_told_who_has_gone(tmp_path):
    first, _ = two(die, folder=tmp_path)
    assert "Process 1 of 2" in first
    assert "its last checkpoint" in first


class Shared(ft.Processes):
    """Processes that share one model."""

    count, shards = 2, True


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layer": "auto"}, "layer=auto"),
        ({"task_vectors": {"dtype": "fp16"}}, "task_vectors.dtype=fp16"),
        ({"task_vectors": {"storage": "mmap"}}, "task_vectors.storage=mmap"),
        ({"batch_size": 1, "update": "joint"}, "batch_size=1"),
        ({"task_vectors": {"storage": "sharded"}}, "fabric=fsdp2"),
    ],
)
def test_what_processes_cannot_share_is_refused_before_anything(world, settings, named):
    with pytest.raises(ValueError, match=named):
        world.tint(**settings, processes=Shared())


def test_an_artifact_that_was_learned_with_sharded_task_vectors_loads(world, tmp_path):
    tinted = world.tint(run_dir=tmp_path)
    manifest = json.loads((tmp_path / "tinting.json").read_text())
    manifest["settings"]["task_vectors"]["storage"] = "sharded"
    del manifest["crc32"]  # which such artifacts had not
    (tmp_path / "tinting.json").write_text(json.dumps(manifest))
    equal(tensors_of(ft.TintedModel.load(tmp_path, **world.models())), tensors_of(tinted))


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize(
    "tensor", [torch.randn(3, 4), torch.tensor(2.0), torch.randn(5).bfloat16(), torch.empty(0, 3)]
)
def test_what_is_set_aside_for_a_checkpoint_is_the_same(monkeypatch, tensor, room):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if not room:
        monkeypatch.setattr(checkpoint.tempfile, "TemporaryFile", full)
    aside = checkpoint.set_aside(tensor)
    assert torch.equal(aside, tensor)
    assert aside.dtype == tensor.dtype
