"""What `mergekit-tint yaml`, `multi` and `pytorch` write is what the equation says, whatever the recipe."""

import json

import pytest
import torch
import yaml
from checkpoints import WORDS, expert, llama, save, tensors
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml
from peft import LoraConfig, get_peft_model
from recipe_world import TASKS, assert_equal, make, merged, weights_by_hand
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_tinting.families.family import BY_ARCHITECTURE
from fusion_tinting.mergekit import recipes
from fusion_tinting.mergekit.cli import main
from fusion_tinting.run.files import write_tensors


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.mark.quick
def test_equals_a_float64_hand_computation_and_loads(world):
    out = world.merge(world.recipe())
    assert_equal(tensors(out), world.by_hand())
    model, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert (
        AutoTokenizer.from_pretrained(out).get_vocab()
        == AutoTokenizer.from_pretrained(world.base).get_vocab()
    )
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    assert "Model Tinting" in (out / "README.md").read_text()


def test_both_recipes_of_a_run_give_the_same_tensors(world):
    """The second by mergekit's own command, on twelve layers: `layers.1` must not stand for `layers.10`."""
    row = {layer: world.lam[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (1, 10, 11)}
    assert not torch.equal(row[1], row[10]) and not torch.equal(row[1], row[11])
    paths = {task: str(path) for task, path in world.experts.items()}
    recipes.write(world.folder, str(world.base), paths, list(TASKS), BY_ARCHITECTURE)
    plain = world.folder / "plain"
    ours = world.merge((world.folder / "recipe.yml").read_text())
    recipe = world.folder / "recipe-task-arithmetic.yml"
    theirs = CliRunner().invoke(mergekit_yaml, [str(recipe), str(plain), "--quiet"])
    assert theirs.exit_code == 0, theirs.output
    assert_equal(tensors(ours), world.by_hand())
    assert_equal(tensors(plain), tensors(ours))


def test_recipes_of_a_run_keep_the_data_type_of_the_base(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama(tmp_path / "full"), dtype=torch.bfloat16)
    base = save(model, AutoTokenizer.from_pretrained(tmp_path / "full"), tmp_path / "base")
    world = make(tmp_path, base)
    recipes.write(
        tmp_path, str(base), {t: str(p) for t, p in world.experts.items()}, list(TASKS), BY_ARCHITECTURE
    )
    for name in ("recipe.yml", "recipe-task-arithmetic.yml"):
        found = tensors(world.merge((tmp_path / name).read_text()))
        assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
        assert_equal(found, {n: t.bfloat16() for n, t in world.by_hand().items()}, relative=1e-3)


def test_relative_paths_and_the_model_card_offline(world, tmp_path, monkeypatch):
    """A relative path with one slash is what mergekit's card would ask the hub about."""
    zoo = tmp_path / "zoo"
    zoo.symlink_to(world.folder)
    recipe = world.recipe(
        base_model="zoo/base", parameters={"coefficients": "zoo/coefficients.safetensors"}
    )
    recipe["models"] = [{"model": f"zoo/{task}", "parameters": {"task": task}} for task in TASKS]
    text = f"# mine\n{yaml.safe_dump(recipe)}"
    (tmp_path / "recipe.yml").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["yaml", "recipe.yml", "out/here", "--quiet"])
    assert result.exit_code == 0, result.output
    assert_equal(tensors(tmp_path / "out" / "here"), world.by_hand())
    assert (tmp_path / "out" / "here" / "mergekit_config.yml").read_text() == text
    assert "# mine" in (tmp_path / "out" / "here" / "README.md").read_text()


def test_a_tint_stands_for_its_layer(world):
    tint = {"lm_head.weight": torch.randn(tensors(world.base)["lm_head.weight"].shape)}
    path = world.folder / "tint.safetensors"
    write_tensors(path, tint, {"format": "pt"})
    parameters = {"coefficients": str(world.coefficients), "tint": str(path)}
    found = tensors(world.merge(world.recipe(parameters=parameters)))
    assert_equal(found, {**world.by_hand(), **tint})
    assert torch.equal(found["lm_head.weight"], tint["lm_head.weight"])


def test_a_file_that_is_written_anew_is_read_anew(world):
    path = world.folder / "again.safetensors"
    recipe = world.recipe(parameters={"coefficients": str(path)})
    for scale in (0.0, 1.0):
        lam = {name: torch.full((3,), scale) for name in world.lam}
        write_tensors(path, lam, {"tasks": json.dumps(TASKS)})
        assert_equal(tensors(world.merge(recipe)), weights_by_hand(world, [scale] * 3))


def test_weights(world):
    found = tensors(world.merge(world.weighted([0.5, -0.25, 1.5])))
    assert_equal(found, weights_by_hand(world, [0.5, -0.25, 1.5]))


def test_one_weight_for_all_models(world):
    models = [{"model": str(path)} for path in world.experts.values()]
    recipe = world.recipe(models=models, parameters={"weight": 0.25})
    assert_equal(tensors(world.merge(recipe)), weights_by_hand(world, [0.25] * 3))


def test_gradients_and_filters(world):
    """The first model's weight grows from 0 at layer 0 to 1 at layer 11; the second's goes by name."""
    filters = [
        {"filter": "self_attn", "value": 0.75},
        {"filter": "mlp", "value": [0.5, 0.25]},
        {"value": 0.125},
    ]
    found = tensors(world.merge(world.weighted([[0.0, 1.0], filters, 0.0])))

    def weights(name):
        t = int(name.split(".")[2]) / 11 if ".layers." in name else 0.0
        second = 0.75 if "self_attn" in name else 0.5 - 0.25 * t if "mlp" in name else 0.125
        return [t, second, 0.0]

    assert_equal(found, weights_by_hand(world, weights))


@pytest.mark.parametrize(
    ("keys", "dtype", "relative"),
    [
        ({"dtype": "float32"}, torch.float32, 1e-6),
        ({"dtype": "float64"}, torch.float64, 1e-7),  # λ itself has float32's digits
        ({"out_dtype": "bfloat16"}, torch.bfloat16, 5e-3),
        ({"dtype": "float32", "out_dtype": "float16"}, torch.float16, 1e-3),
    ],
)
def test_data_types(world, keys, dtype, relative):
    found = tensors(world.merge(world.recipe(**keys)))
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_equal(found, world.by_hand(), relative)


def test_models_in_half_precision_are_added_up_in_single(world):
    """With `dtype: bfloat16` what is read is rounded, and the sum only once more."""
    found = tensors(world.merge(world.recipe(dtype="bfloat16")))
    start, experts = tensors(world.base), [tensors(path) for path in world.experts.values()]
    for name, tensor in found.items():
        rounded = [each[name].bfloat16() for each in (start, *experts)]
        by_hand = merged(rounded[0], rounded[1:], world.lam[name].tolist())
        assert (tensor.double() - by_hand).abs().max() <= by_hand.abs().max() * 2**-8
        assert (tensor == by_hand.bfloat16()).double().mean() > 0.999


def test_shards(world):
    out = world.merge(world.recipe(), "--out-shard-size", "20K")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert_equal(tensors(out), world.by_hand())


def test_pickled_checkpoints_are_read_and_written(world, tmp_path):
    folder = expert(tmp_path / "pickled", world.experts["cats"], seed=5)
    torch.save(tensors(world.experts["cats"]), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    recipe = world.weighted([0.5, 0.0, 0.0])
    recipe["models"][0]["model"] = str(folder)
    out = world.merge(recipe, "--no-safe-serialization")
    found = torch.load(out / "pytorch_model.bin", weights_only=True)
    assert_equal(found, weights_by_hand(world, [0.5, 0.0, 0.0]))


def test_a_lora_is_merged_into_its_model_first(world, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(world.base)
    torch.manual_seed(3)
    settings = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "lora")
    recipe = world.weighted([0.5, 0.0, 0.0])
    recipe["models"][0]["model"] = f"{world.base}+{tmp_path / 'lora'}"
    refused = world.run(recipe, out=tmp_path / "refused")
    assert refused.exit_code == 1 and "--lora-merge-cache" in refused.output
    found = tensors(world.merge(recipe, "--lora-merge-cache", str(tmp_path / "cache")))
    (complete,) = (tmp_path / "cache").iterdir()
    start, whole = tensors(world.base), tensors(complete)
    assert not torch.equal(
        start["model.layers.0.mlp.up_proj.weight"], whole["model.layers.0.mlp.up_proj.weight"]
    )
    assert_equal(found, {name: merged(start[name], [whole[name]], [0.5]) for name in start})


@pytest.mark.parametrize("source", ["union", "base"])
def test_tokenizer_sources(world, tmp_path, source):
    """An expert knows one word more; tokens that both know are merged by what they are, not where."""
    wider = llama(tmp_path / "wider", layers=12, words=("aardvark", *WORDS))
    models = [{"model": str(wider), "parameters": {"weight": 0.5}}]
    recipe = world.recipe(models=models, parameters=None)
    refused = world.run(recipe, out=tmp_path / "refused")
    assert refused.exit_code == 1 and "`tokenizer: {source: base}`" in refused.output
    out = world.merge({**recipe, "tokenizer": {"source": source}})
    vocabulary = AutoTokenizer.from_pretrained(out).get_vocab()
    assert ("aardvark" in vocabulary) == (source == "union")
    found, start, other = tensors(out), tensors(world.base), tensors(wider)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert found[name].shape[0] == len(vocabulary)
        was, there = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (world.base, wider))
        by_hand = merged(start[name][was["film"]], [other[name][there["film"]]], [0.5])
        torch.testing.assert_close(found[name][vocabulary["film"]].double(), by_hand, rtol=1e-5, atol=1e-7)
    AutoModelForCausalLM.from_pretrained(out)


def test_tied_embeddings_stay_tied(tmp_path):
    world = make(tmp_path, llama(tmp_path / "base", tied=True))
    out = world.merge(world.recipe())
    assert "lm_head.weight" not in tensors(out)
    assert_equal(tensors(out), world.by_hand())
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def layers(world, *ranges, weights=False):
    """`slices` of these layers, from every model."""
    own = [{"weight": 0.5} if weights else {"task": task} for task in TASKS]
    models = [(world.base, None), *zip(world.experts.values(), own, strict=True)]
    return [
        {"sources": [{"model": str(m), "layer_range": list(r), "parameters": p} for m, p in models]}
        for r in ranges
    ]


def test_slices_in_their_place(world):
    recipe = world.recipe(models=None, slices=layers(world, (0, 5), (5, 12)))
    assert_equal(tensors(world.merge(recipe)), world.by_hand())


def test_slices_that_move_layers_take_weights(world):
    """Layers 10 and 11 become 1 and 2: their coefficients are the file's no more."""
    moved = world.recipe(models=None, slices=layers(world, (0, 1), (10, 12)))
    refused = world.run(moved, out=world.folder / "refused")
    assert refused.exit_code == 1 and "goes by names" in refused.output
    slices = layers(world, (0, 1), (10, 12), weights=True)
    found = tensors(world.merge(world.recipe(models=None, slices=slices, parameters=None)))
    by_hand = weights_by_hand(world, [0.5] * 3)
    assert len({name.split(".")[2] for name in found if ".layers." in name}) == 3
    for name, tensor in found.items():
        came = name.replace("layers.1.", "layers.10.").replace("layers.2.", "layers.11.")
        torch.testing.assert_close(tensor.double(), by_hand[came], rtol=1e-5, atol=1e-7)


def test_modules(world):
    recipe = world.recipe(models=None, modules={"default": {"models": world.models}})
    assert_equal(tensors(world.merge(recipe)), world.by_hand())
