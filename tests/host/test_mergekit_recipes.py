"""What is wrong with a merge is said in one line, before anything is written; and what was lost, after."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
import yaml
from checkpoints import WORDS, classifier, expert, llama, masked_lm, tensors
from click.testing import CliRunner
from recipe_world import TASKS, make, write_coefficients

from fusion_tinting.mergekit import helping, hosted
from fusion_tinting.mergekit.cli import FORCE, MOVED, main
from fusion_tinting.run.files import write_tensors

COMMAND = Path(sys.executable).parent / "mergekit-tint"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return make(folder, llama(folder / "base"))


@pytest.fixture
def refused(world, tmp_path):
    """Run a recipe that must fail; its one line, with nothing written."""

    def run(recipe, *options: str, command: str = "yaml", out: Path = tmp_path / "out") -> str:
        before = sorted(out.iterdir()) if out.exists() else None
        result = world.run(recipe, *options, out=out, command=command)
        assert result.exit_code == 1, result.output
        assert (sorted(out.iterdir()) if out.exists() else None) == before
        said = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert result.output.rstrip().endswith(said[-1]), result.output
        return said[-1]

    return run


def parameters(world, **more):
    return {"coefficients": str(world.coefficients), **more}


@pytest.mark.quick
@pytest.mark.parametrize("command", [None, "learn", "yaml", "multi", "pytorch", "variants", "show"])
def test_help_imports_nothing_heavy(command):
    """Torch, transformers and mergekit cost seconds; they are for the commands."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    arguments = [COMMAND, *filter(None, [command]), "--help"]
    told = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in told.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "transformers", "mergekit", "numpy", "datasets", "matplotlib"}
    names = (
        ("learn", "yaml", "multi", "pytorch", "variants", "show") if command is None else ("-h, --help",)
    )
    assert all(f"\n  {name} " in told.stdout for name in names)


@pytest.mark.parametrize("command", ["yaml", "multi", "pytorch"])
def test_help_of_mergekits_commands_has_all_options(command):
    told = CliRunner().invoke(main, [command, "--help"])
    assert told.exit_code == 0
    for option in (
        "--out-shard-size",
        "--lora-merge-cache",
        "--low-cpu-memory",
        "--random-seed",
        "--force",
    ):
        assert option in told.output


@pytest.mark.parametrize("command", helping.SCRIPTS)
def test_the_quick_help_has_every_option_and_argument_of_the_command(command):
    quick, whole = helping.command(command, [FORCE, MOVED]), getattr(hosted, f"{command}_command")()

    def names(found: click.Command) -> list[tuple]:
        return sorted(
            (p.param_type_name, p.name, *sorted((*p.opts, *p.secondary_opts))) for p in found.params
        )

    assert names(quick) == names(whole)


@pytest.mark.quick
def test_mistyped_keys(world, refused):
    assert "Did you mean `dtype`?" in refused(world.recipe(dtpye="float32"))
    assert "Did you mean `coefficients`?" in refused(world.recipe(parameters={"coefficient": "x"}))
    models = world.models
    models[1]["parameters"] = {"wieght": 1.0}
    said = refused(world.recipe(models=models))
    assert "`wieght`" in said and "models[1]" in said and "`weight`" in said
    models[1] = {"model": models[1]["model"], "parametres": {}}
    assert "`parametres`" in refused(world.recipe(models=models))
    models[1] = {"model": models[1]["model"], "parameters": {"coefficients": str(world.coefficients)}}
    assert "Unknown parameter of models[1] `coefficients`" in refused(world.recipe(models=models))


def test_mistyped_keys_in_slices(world, refused):
    source = {"model": str(world.base), "layer_range": [0, 2], "parameters": {"tsak": "cats"}}
    said = refused(world.recipe(models=None, slices=[{"sources": [source]}]))
    assert "`tsak`" in said and "sources[0]" in said


def test_values(world, refused):
    for value in (
        float("nan"),
        float("inf"),
        "much",
        [0.1, float("nan")],
        [{"filter": "mlp", "value": "x"}],
    ):
        said = refused(world.weighted([0.5, value, 0.5]))
        assert "`weight` of models[1] must be a finite number" in said
    models = world.models
    models[0]["parameters"]["task"] = 7
    assert "`task` of models[0] must be a text" in refused(world.recipe(models=models))


def test_tasks(world, refused):
    models = world.models
    models[2]["parameters"] = {"task": "owl"}
    assert "Unknown task `owl`. Did you mean `owls`?" in refused(world.recipe(models=models))
    models[2]["parameters"] = {}
    assert "every model needs a `task`" in refused(world.recipe(models=models))
    assert "together; the recipe has models of ['cats', 'dogs'] alone" in refused(
        world.recipe(models=models[:2])
    )


def test_neither_or_both_of_weight_and_coefficients(world, refused):
    assert "Found none for `model.embed_tokens.weight`" in refused(world.recipe(parameters=None))
    models = world.models
    models[0]["parameters"]["weight"] = 0.5
    assert "Found both" in refused(world.recipe(models=models))
    assert "Found none" in refused(world.weighted([0.5, {"filter": "self_attn", "value": 1.0}, 0.5]))


def test_coefficients_for_other_tensors(world, refused, tmp_path):
    path = tmp_path / "coefficients.safetensors"
    recipe = world.recipe(parameters={"coefficients": str(path)})
    fewer = {name: row for name, row in world.lam.items() if "norm" not in name}
    write_coefficients(path, fewer)
    said = refused(recipe)
    assert "no coefficients for 5 tensor(s)" in said and "model.norm.weight" in said
    write_coefficients(path, {**world.lam, "model.layers.9.mlp.up_proj.weight": torch.zeros(3)})
    assert "['model.layers.9.mlp.up_proj.weight']" in refused(recipe)


def test_junk_in_coefficients(world, refused, tmp_path):
    path = tmp_path / "coefficients.safetensors"
    recipe = world.recipe(parameters={"coefficients": str(path)})
    assert f"`{path}` is missing" in refused(recipe)
    path.write_bytes(b"junk")
    assert "is cut short or no safetensors file" in refused(recipe)
    write_tensors(path, world.lam, {})
    assert "does not say which task each column belongs to" in refused(recipe)
    write_coefficients(path, {**world.lam, "lm_head.weight": torch.tensor([0.1, float("nan"), 0.2])})
    assert "`lm_head.weight`" in refused(recipe) and "finite" in refused(recipe)
    write_coefficients(path, {**world.lam, "lm_head.weight": torch.zeros(2)})
    assert "must hold 3 finite numbers" in refused(recipe)


def test_junk_in_tints(world, refused, tmp_path):
    path = tmp_path / "tint.safetensors"
    recipe = world.recipe(parameters=parameters(world, tint=str(path)))
    assert f"`{path}` is missing" in refused(recipe)
    shape = tensors(world.base)["lm_head.weight"].shape
    for tint, words in [
        ({"lm_head.weight": torch.full(shape, float("nan"))}, "holds NaN"),
        ({"lm_head.weight": torch.zeros(3, 4)}, "lm_head.weight (3, 4), not (25, 16)"),
        ({"classifier.weight": torch.zeros(3, 4)}, "the base has not: ['classifier.weight']"),
    ]:
        write_tensors(path, tint, {})
        assert words in refused(recipe)
    path.write_bytes(b"junk")
    assert "is cut short" in refused(recipe)


def test_models_that_are_not_there(world, refused, tmp_path):
    for absent in ("nowhere/nothing", str(tmp_path / "gone")):
        assert f"`{absent}` is neither a folder nor a model" in refused(world.recipe(base_model=absent))
        models = [{"model": absent, "parameters": {"task": "cats"}}]
        assert f"`{absent}` is neither a folder nor a model" in refused(world.recipe(models=models))
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint" in refused(world.recipe(base_model=str(tmp_path / "empty")))
    assert "needs a `base_model`" in refused(world.recipe(base_model=None))


def test_damaged_models(world, refused, tmp_path):
    damaged = expert(tmp_path / "damaged", world.base, seed=1)
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    models = [{"model": str(damaged), "parameters": {"task": "cats"}}]
    assert "is cut short" in refused(world.recipe(models=models))


def test_recipes_that_are_none(world, refused, tmp_path):
    assert "is no YAML" in refused("models: [")
    assert "must hold a mapping" in refused("just words")
    assert "`models.0.model`: Field required" in refused(world.recipe(models=[{"parameters": {}}]))
    assert "Unimplemented merge method" in refused(world.recipe(merge_method="model_tainting"))
    assert "use `mergekit-tint multi`" in refused(f"{yaml.safe_dump(world.recipe())}---\na: 1\n")
    result = CliRunner().invoke(main, ["yaml", "gone.yml", str(tmp_path / "out")])
    assert result.exit_code == 1 and result.output == "Error: There is no recipe `gone.yml`.\n"


def test_experts_of_another_architecture(world, refused, tmp_path):
    base = masked_lm(tmp_path / "base")
    models = [{"model": str(classifier(tmp_path / "a", base, 3, seed=1)), "parameters": {"weight": 0.5}}]
    said = refused(world.recipe(base_model=str(base), models=models, parameters=None))
    assert "RobertaForSequenceClassification" in said and "RobertaForMaskedLM" in said
    assert "`mergekit-tint variants RUN OUT`" in said


def test_heads_of_different_shapes(world, refused, tmp_path):
    base = masked_lm(tmp_path / "base")
    two, three = (classifier(tmp_path / str(n), base, n, seed=n) for n in (2, 3))
    models = [{"model": str(three), "parameters": {"weight": 0.5}}]
    said = refused(world.recipe(base_model=str(two), models=models, parameters=None))
    assert "classifier.out_proj.weight (3, 16), not (2, 16)" in said
    assert "`mergekit-tint variants RUN OUT`" in said


def test_experts_with_more_layers_or_fewer(world, refused, tmp_path):
    for count in (1, 3):
        other = llama(tmp_path / str(count), layers=count)
        models = [{"model": str(other), "parameters": {"weight": 0.5}}]
        said = refused(world.recipe(models=models, parameters=None))
        assert f"number of layers of `{other}`" in said and f": {count} and 2." in said


def test_vocabularies(world, refused, tmp_path):
    """As many words, but others: every shape agrees, and the embeddings' rows mean other tokens."""
    swapped = llama(tmp_path / "swapped", words=WORDS[::-1])
    recipe = world.recipe(models=[{"model": str(swapped), "parameters": {"weight": 0.5}}], parameters=None)
    said = refused(recipe)
    assert "The vocabulary of" in said and "`tokenizer: {source: base}`" in said
    found = tensors(world.merge({**recipe, "tokenizer": {"source": "base"}}))
    assert found.keys() == tensors(world.base).keys()


def test_a_folder_that_is_not_empty(world, refused, tmp_path):
    out = tmp_path / "out"
    first = world.run(world.recipe(), "--out-shard-size", "2K", out=out)
    assert first.exit_code == 0 and len(list(out.glob("*.safetensors"))) > 1
    (out / "notes.txt").write_text("mine")
    assert "is not empty" in refused(world.recipe()) and "`--force`" in refused(world.recipe())
    assert "Unknown task" in refused(
        world.recipe(models=[{**world.models[0], "parameters": {"task": "x"}}]), "--force"
    )
    anew = world.run(world.weighted([0, 0, 0]), "--force", out=out)
    assert anew.exit_code == 0, anew.output
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]
    found, base = tensors(out), tensors(world.base)
    assert all(torch.equal(found[name], tensor) for name, tensor in base.items())
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("command", ["yaml", "pytorch"])
def test_a_model_is_not_written_over(world, refused, command):
    for folder in (world.base, world.experts["dogs"]):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        recipe = world.of_files() if command == "pytorch" else world.recipe()
        said = refused(recipe, "--force", command=command, out=folder)
        assert "is itself one of the models" in said
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_multi_does_not_write_over_a_model(world, tmp_path):
    before = {path.name: path.read_bytes() for path in world.base.iterdir()}
    (tmp_path / "recipes.yml").write_text(yaml.safe_dump_all([world.recipe()]))
    arguments = ["multi", str(tmp_path / "recipes.yml"), "-I", str(tmp_path), "--no-lazy", "--force"]
    result = CliRunner().invoke(main, [*arguments, "--out-path", str(world.base), "--quiet"])
    assert result.exit_code == 1 and "is itself one of the models" in result.output
    assert {path.name: path.read_bytes() for path in world.base.iterdir()} == before


def test_multi_is_refused_before_its_first_recipe_is_merged(world, tmp_path):
    first = {**world.recipe(), "name": "first"}
    models = [{"model": "first", "parameters": {"wieght": 1.0}}]
    last = {"merge_method": "model_tinting", "base_model": str(world.base), "models": models}
    path = tmp_path / "recipes.yml"
    arguments = ["multi", str(path), "-I", str(tmp_path / "inside"), "--quiet"]
    path.write_text(yaml.safe_dump_all([first, last]))
    result = CliRunner().invoke(main, [*arguments, "--out-path", str(tmp_path / "out")])
    assert result.exit_code == 1 and "`wieght`" in result.output and not (tmp_path / "inside").exists()
    models[0]["parameters"] = {"weight": 1.0}
    path.write_text(yaml.safe_dump_all([first, last]))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "`--out-path` is missing" in result.output


def test_pytorch_is_refused(world, refused, tmp_path):
    recipe = world.recipe(base_model=str(world.base / "model.safetensors"))
    recipe["models"] = [{**m, "model": f"{m['model']}/model.safetensors"} for m in recipe["models"]]
    assert "`slices`" in refused({**recipe, "slices": []}, command="pytorch")
    assert "is a file: `mergekit-tint pytorch` merges files" in refused(recipe)
    alone = {**recipe, "models": recipe["models"][1:2]}
    assert "has models of ['dogs'] alone" in refused(alone, command="pytorch")
    fewer = dict(list(world.lam.items())[1:])
    write_coefficients(tmp_path / "fewer.safetensors", fewer)
    changed = {**recipe, "parameters": {"coefficients": str(tmp_path / "fewer.safetensors")}}
    assert "no coefficients for 1 tensor(s)" in refused(changed, command="pytorch")
    recipe["models"][0]["model"] = str(tmp_path / "gone.safetensors")
    assert "gone.safetensors" in refused(recipe, command="pytorch")


def test_one_program_says_one_line(world, tmp_path):
    """In a process of its own, as a shell sees it."""
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps(world.recipe(parameters={"coefficients": "gone.safetensors"})))
    told = subprocess.run([COMMAND, "yaml", path, tmp_path / "out"], capture_output=True, text=True)
    assert told.returncode == 1 and not (tmp_path / "out").exists()
    assert told.stderr.splitlines()[-1] == "Error: `gone.safetensors` is missing."
    assert "Traceback" not in told.stderr
    assert set(TASKS) == set(world.experts)
