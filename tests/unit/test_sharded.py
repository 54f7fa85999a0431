"""Two processes of torch.distributed against one: the work shared out, and the task vectors too."""

import json
from pathlib import Path

import forked
import pytest
import torch
from processes_of_a_group import adapt
from safetensors.torch import load_file
from world import make_world

CASES = [
    ("torch", "joint", "memory", "fp32"),
    ("torch", "joint", "sharded", "fp32"),
    ("torch", "sequential", "sharded", "fp32"),
    ("torch", "joint", "sharded", "fp16"),
    ("fabric", "joint", "memory", "fp32"),
    ("fabric", "sequential", "sharded", "fp32"),
]


def options(update: str, storage: str, dtype: str) -> dict:
    """Settings of a run."""
    task_vectors = {"storage": storage, "dtype": dtype}
    return {
        "update": update, "layer": "blocks.1", "sampler": "all", "average": True,
        "task_vectors": task_vectors,
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
    _, update, storage, dtype = case
    found = [load_file(together / f"{CASES.index(case)}-{rank}.safetensors") for rank in (0, 1)]
    alone = make_world().tint(**options(update, "memory", dtype))
    expert = alone.remerged("dogs").merged
    for tensors in found:
        for name, row in alone.coefficients.items():
            torch.testing.assert_close(tensors[name], row, rtol=0, atol=1e-5)
        for name, tint in alone.tint_modules.state_dict().items():
            torch.testing.assert_close(tensors[f"tints.{name}"], tint, rtol=0, atol=1e-5)
        for name, parameter in alone.merged.named_parameters():
            torch.testing.assert_close(tensors[f"merged.{name}"], parameter, rtol=0, atol=1e-5)
        for name, parameter in expert.named_parameters():
            torch.testing.assert_close(tensors[f"expert.{name}"], parameter, rtol=0, atol=1e-6)
        torch.testing.assert_close(tensors["history"], alone.history.values, rtol=1e-4, atol=1e-5)
    width = alone.vectors.size
    held = [int(tensors["held"]) for tensors in found]
    assert held == ([width, width] if storage == "memory" else [width // 2, width - width // 2])


def test_one_process_alone_is_told_that_there_is_nothing_to_share(world):
    with pytest.raises(ValueError, match=r"`task_vectors.storage: sharded`.*Found a single one"):
        world.tint(task_vectors={"storage": "sharded"})
