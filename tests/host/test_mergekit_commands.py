"""`mergekit-tint multi`, `mergekit-tint pytorch` and the Python interface give the same as `yaml`."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import tensors
from click.testing import CliRunner
from mergekit.merge_methods import merge_state_dicts
from recipe_world import TASKS, assert_equal, make, merged, weights_by_hand

from fusion_tinting.mergekit.cli import main
from fusion_tinting.mergekit.method import model_tinting
from fusion_tinting.run.files import write_tensors


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


def test_the_python_interface(world):
    models = {"base": tensors(world.base), **{t: tensors(path) for t, path in world.experts.items()}}
    parameters = {"coefficients": str(world.coefficients), "task": {task: task for task in TASKS}}
    found = merge_state_dicts(models, model_tinting, base="base", parameters=parameters)
    assert_equal(found, world.by_hand())
    found = merge_state_dicts(
        list(models.values()), model_tinting, base=0, parameters={"weight": [0.5, 0, 1]}
    )
    assert_equal(found, weights_by_hand(world, [0.5, 0, 1]))


def test_the_python_interface_keeps_gradients():
    start = torch.nn.Linear(3, 2)
    other = deepcopy(start)
    found = merge_state_dicts([start, other], model_tinting, base=0, parameters={"weight": [0.25]})
    sum(tensor.sum() for tensor in found.values()).backward()
    assert torch.equal(other.weight.grad, torch.full((2, 3), 0.25))
    assert torch.equal(start.bias.grad, torch.full((2,), 0.75))


def multi(world, recipe, inside, out, *options):
    return CliRunner().invoke(
        main, ["multi", str(recipe), "-I", str(inside), "--out-path", str(out), *options]
    )


def test_multi(world, tmp_path, monkeypatch):
    """Two recipes, of which the second merges what the first has made; paths are relative."""
    monkeypatch.chdir(tmp_path)
    first = {**world.recipe(), "name": "first"}
    last = {"merge_method": "task_arithmetic", "base_model": str(world.base), "dtype": "float32"}
    last["models"] = [{"model": "first", "parameters": {"weight": 0.5}}]
    recipe = Path("recipes.yml")
    recipe.write_text(yaml.safe_dump_all([last, first]))
    result = multi(world, recipe, "inside", "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert_equal(tensors(tmp_path / "inside" / "first"), world.by_hand())
    start = tensors(world.base)
    halfway = {name: merged(start[name], [tensor], [0.5]) for name, tensor in world.by_hand().items()}
    assert_equal(tensors(tmp_path / "out"), halfway)

    again = multi(world, recipe, "inside", "out", "--quiet")
    assert again.exit_code == 0 and again.output.count("Kept `") == 2
    anew = multi(world, recipe, "inside", "out", "--quiet", "--no-lazy")
    assert anew.exit_code == 1 and "is not empty" in anew.output
    assert multi(world, recipe, "inside", "out", "--quiet", "--no-lazy", "--force").exit_code == 0
    assert_equal(tensors(tmp_path / "out"), halfway)


def test_pytorch(world):
    assert_equal(tensors(world.merge(world.of_files(), command="pytorch")), world.by_hand())


@pytest.mark.parametrize("option", ["--tensor-union", "--tensor-intersection"])
def test_pytorch_with_tensors_that_one_expert_lacks(world, tmp_path, option):
    path, gone = tmp_path / "less.safetensors", "lm_head.weight"
    write_tensors(path, {n: t for n, t in tensors(world.experts["owls"]).items() if n != gone}, {})
    recipe = world.of_files()
    recipe["models"][2]["model"] = str(path)
    refused = world.run(recipe, out=tmp_path / "refused", command="pytorch")
    assert (
        refused.exit_code == 1
        and "lacks 1 tensor(s) that others hold: ['lm_head.weight']. Add `--tensor-inter" in refused.output
    )
    found = tensors(world.merge(recipe, option, command="pytorch"))
    wanted = world.by_hand()
    experts = [tensors(world.experts[task])[gone] for task in TASKS[:2]]
    wanted[gone] = merged(tensors(world.base)[gone], experts, world.lam[gone].tolist()[:2])
    if option == "--tensor-intersection":
        del wanted[gone]
    assert_equal(found, wanted)
