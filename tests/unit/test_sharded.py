"""Two processes of torch.distributed against one: the work shared out, and the model too, by FSDP2."""

import json
from pathlib import Path

import forked
import pytest
import torch
from processes_of_a_group import adapt, tensors_of
from safetensors.torch import load_file
from world import make_world

CASES = [
    ("torch", "joint", "blocks.1", "memory"),
    ("torch, one model", "joint", "blocks.1", "memory"),
    ("torch, one model", "sequential", "head", "host"),
    ("torch, one model", "sequential", "blocks", "memory"),
    ("fabric", "joint", "blocks.1", "memory"),
    ("fabric, one model", "sequential", "stem", "memory"),
]


def options(update: str, layer: str, storage: str) -> dict:
    """Settings of a run."""
    task_vectors = {"storage": storage}
    return {
        "update": update, "layer": layer, "sampler": "all", "average": True, "task_vectors": task_vectors,
    }  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What each of two processes ended with in every case: `<number of the case>-<rank>.safetensors`."""
    folder = tmp_path_factory.mktemp("group")
    cases = json.dumps([(host, options(*settings)) for host, *settings in CASES])
    started = [forked.start(adapt, str(rank), "2", cases, folder=folder, environment={}) for rank in (0, 1)]
    for process, output in started:
        forked.end(process, output, seconds=120)
    return folder


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_equal_one(together, case):
    host, update, layer, _ = case
    alone = tensors_of(make_world().tint(**options(update, layer, "memory")))
    width = int(alone.pop("held"))
    for rank in (0, 1):
        tensors = load_file(together / f"{CASES.index(case)}-{rank}.safetensors")
        held = int(tensors.pop("held"))
        assert held < 0.56 * width if "one model" in host else held == width
        assert tensors.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
