"""Tensors with other names on disk than in memory: what mergekit loses is said, what it renames is not."""

from pathlib import Path

import pytest
import torch
from checkpoints import tensors
from recipe_world import assert_equal, make
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    OlmoeConfig,
    OlmoeForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)


def vit(folder: Path) -> Path:
    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=16,
        patch_size=8, num_labels=3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def older_clip_tower(folder: Path) -> Path:
    """With the prefix on disk that transformers 5 has no more in memory."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=16,
        patch_size=8, projection_dim=8,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    names = {f"vision_model.{name.removeprefix('vision_model.')}": t for name, t in tensors(folder).items()}
    save_file(names, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("make_base", [vit, older_clip_tower])
def test_architectures_that_mergekit_does_not_write_whole(tmp_path, make_base):
    """mergekit says that all is well, and has dropped most tensors, or all."""
    world = make(tmp_path, make_base(tmp_path / "base"))
    name = next(name for name in world.lam if name.endswith("layer.0.attention.attention.key.bias")
                or name.endswith("vision_model.embeddings.class_embedding"))  # fmt: skip
    ours = world.run(world.recipe(), out=tmp_path / "ours")
    assert ours.exit_code == 1 and not (tmp_path / "ours").exists()
    assert "mergekit does not know" in ours.output
    theirs = world.run(world.weighted([0.3] * 3, merge_method="task_arithmetic"), out=tmp_path / "theirs")
    assert theirs.exit_code == 1
    assert name in theirs.output
    for said in (ours.output, theirs.output):
        assert "`mergekit-tint variants RUN OUT`" in said and "`mergekit-tint pytorch`" in said

    recipe = world.recipe(base_model=f"{world.base}/model.safetensors")
    recipe["models"] = [
        {**model, "model": f"{model['model']}/model.safetensors"} for model in recipe["models"]
    ]
    assert_equal(tensors(world.merge(recipe, command="pytorch")), world.by_hand())


def test_other_names_of_the_same_tensors_are_not_missed(tmp_path):
    """GPT-2 as first published: no prefix on disk, and buffers that nothing reads."""
    config = GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=16, vocab_size=20, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    names = {n.removeprefix("transformer."): t for n, t in tensors(tmp_path / "base").items()}
    buffers = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in (0, 1)}
    save_file({**names, **buffers}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    world = make(tmp_path, tmp_path / "base")
    out = world.merge(world.weighted([0.3] * 3, merge_method="task_arithmetic"))
    assert set(tensors(out)) == {f"transformer.{name}" for name in names}


def test_experts_of_a_mixture_become_one_tensor(tmp_path):
    config = OlmoeConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, vocab_size=20,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(tmp_path / "base")
    assert any("experts.3." in name for name in tensors(tmp_path / "base"))
    world = make(tmp_path, tmp_path / "base")
    recipe = world.weighted([0.3] * 3, merge_method="task_arithmetic")
    assert any(name.endswith("experts.gate_up_proj") for name in tensors(world.merge(recipe)))
