"""Two processes of torch.distributed against one: the work shared out, and the task vectors too."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from world import make_world

SCRIPT = Path(__file__).with_name("processes_of_a_group.py")


def together(folder: Path, update: str, storage: str, dtype: str = "fp32") -> list[dict]:
    """What each of two processes ended with."""
    commands = [[sys.executable, SCRIPT, str(r), "2", folder, update, storage, dtype] for r in (0, 1)]
    started = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize(
    ("update", "storage", "dtype"),
    [
        ("joint", "memory", "fp32"),
        ("joint", "sharded", "fp32"),
        ("sequential", "sharded", "fp32"),
        ("joint", "sharded", "fp16"),
    ],
)
def test_two_processes_equal_one(tmp_path, update, storage, dtype):
    found = together(tmp_path, update, storage, dtype)
    options = {"update": update, "layer": "blocks.1", "sampler": "all", "average": True}
    alone = make_world().tint(**options, task_vectors={"dtype": dtype})
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
    width = alone.vectors.base.numel()
    held = [int(tensors["held"]) for tensors in found]
    assert held == ([width, width] if storage == "memory" else [width // 2, width - width // 2])


def test_one_process_alone_is_told_that_there_is_nothing_to_share(world):
    with pytest.raises(ValueError, match=r"`task_vectors.storage: sharded`.*Found a single one"):
        world.tint(task_vectors={"storage": "sharded"})
