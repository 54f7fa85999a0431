"""A run outlives its models' places: they are named anew, and must be what they were."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import tensors
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_mergekit_variants import LABELS, Run, make_roberta

from fusion_tinting.mergekit.cli import main


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Run:
    return make_roberta(tmp_path_factory.mktemp("learned"), LABELS, layer="head")


@pytest.fixture
def run(learned, tmp_path) -> Run:
    """A run in folders that may be moved, its recipe in step."""
    copied = learned.copy(tmp_path / "zoo")
    recipe = yaml.safe_load((copied.folder / "recipe.yml").read_text())
    for model in recipe["models"]:
        model["model"] = str(copied.experts[model["parameters"]["task"]] / "model.safetensors")
    recipe["parameters"]["coefficients"] = str(copied.folder / "coefficients.safetensors")
    (copied.folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return copied


def merge(recipe: Path, out: Path, *options: str):
    """Merge the shared model by a recipe."""
    arguments = ["pytorch", str(recipe), str(out), "--tensor-intersection", "--quiet", *options]
    return CliRunner().invoke(main, arguments)


def change(folder: Path) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    found["roberta.encoder.layer.0.output.dense.weight"].add_(1e-3)
    save_file(found, path, {"format": "pt"})


def test_an_expert_that_has_moved(run, tmp_path):
    old, new = run.experts["mnli"], tmp_path / "elsewhere" / "mnli"
    shutil.copytree(old, new)
    shutil.rmtree(old)
    said = run.variants(tmp_path / "out", fails=True)
    assert f"`--moved {old}=NEW`" in said and not (tmp_path / "out").exists()
    run.variants(tmp_path / "out", "--moved", f"{old}={new}")
    run.assert_reproduced(tmp_path / "out")
    shown = CliRunner().invoke(main, ["show", str(run.folder)]).output
    assert f"mnli: {old} (not there" in shown and shown.count("(not there") == 1


def test_all_that_was_in_one_folder(run, tmp_path):
    """The run too: its recipe names its coefficients."""
    (tmp_path / "zoo").rename(tmp_path / "new-zoo")
    moved = ("--moved", f"{tmp_path / 'zoo'}={tmp_path / 'new-zoo'}")
    recipe = tmp_path / "new-zoo" / "run" / "recipe.yml"
    assert "coefficients.safetensors` is missing" in merge(recipe, tmp_path / "refused").output
    result = merge(recipe, tmp_path / "out", *moved)
    assert result.exit_code == 0, result.output
    assert merge(run_recipe_in_place(recipe, tmp_path), tmp_path / "again").exit_code == 0
    assert_same(tensors(tmp_path / "out"), tensors(tmp_path / "again"))


def run_recipe_in_place(recipe: Path, tmp_path: Path) -> Path:
    text = recipe.read_text().replace(str(tmp_path / "zoo"), str(tmp_path / "new-zoo"))
    recipe.write_text(text)
    return recipe


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("name", ["a b", "v1+v2", "at@home", 'a"b'])
def test_a_path_that_mergekit_reads_otherwise(run, tmp_path, name):
    new = tmp_path / name
    shutil.copytree(run.experts["sst2"], new)
    moved = ("--moved", f"{run.experts['sst2']}={new}")
    refused = merge(run.folder / "recipe.yml", tmp_path / "out", *moved)
    assert refused.exit_code == 1 and f"mergekit cannot read `{new}" in refused.output
    run.variants(tmp_path / "out", *moved)


def test_another_model_in_the_place_of_one_that_has_moved(run, tmp_path):
    old, new = run.experts["sst2"], tmp_path / "new"
    shutil.copytree(old, new)
    change(new)
    moved = ("--moved", f"{old}={new}")
    assert "The expert `sst2`" in run.variants(tmp_path / "out", *moved, fails=True)
    refused = merge(run.folder / "recipe.yml", tmp_path / "out", *moved)
    assert refused.exit_code == 1 and "has changed since" in refused.output
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_trained_on_in_its_place(run, tmp_path):
    recipe = run.folder / "recipe.yml"
    assert merge(recipe, tmp_path / "before").exit_code == 0
    change(run.experts["stars"])
    refused = merge(recipe, tmp_path / "out")
    assert refused.exit_code == 1 and "The expert `stars`" in refused.output
    assert not (tmp_path / "out").exists()


def test_a_move_of_what_was_never_there(run, tmp_path):
    moved = ("--moved", f"{tmp_path / 'zoo' / 'mlni'}={tmp_path}")
    assert "none was there" in run.variants(tmp_path / "out", *moved, fails=True)
    assert "none was there" in merge(run.folder / "recipe.yml", tmp_path / "out", *moved).output


def test_an_expert_that_is_configured_otherwise_since(run, tmp_path):
    path = run.experts["mnli"] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-3}))
    said = run.variants(tmp_path / "out", fails=True)
    assert "configured otherwise" in said and "`layer_norm_eps` 0.001" in said
