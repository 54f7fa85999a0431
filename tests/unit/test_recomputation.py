"""Gradient checkpointing of the library's models, in `eval` mode: gradients stay, activations go."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fusion_tinting.method.blocks import blocks_of_all
from fusion_tinting.method.recomputation import recomputed

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"input_ids": torch.arange(24).view(2, 12)}
CAUSAL = {**TEXT, "use_cache": False}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}
T5 = {"d_model": 32, "d_ff": 48, "num_layers": 3, "num_heads": 4, "d_kv": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(vocab_size=50, **SIZE), CAUSAL, 3),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(vocab_size=50, head_dim=8, num_key_value_heads=2, **SIZE),
        CAUSAL,
        3,
    ),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(vocab_size=50, num_local_experts=4, num_key_value_heads=2, **SIZE),
        CAUSAL,
        3,
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=1),
        CAUSAL,
        3,
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=50, **T5),
        {**CAUSAL, "decoder_input_ids": TEXT["input_ids"]},
        6,
    ),
    "roberta": (RobertaModel, RobertaConfig(vocab_size=50, max_position_embeddings=40, **SIZE), TEXT, 3),
    "clip": (CLIPVisionModel, CLIPVisionConfig(image_size=32, patch_size=8, **SIZE), PIXELS, 3),
    "swin": (SwinModel, SwinConfig(window_size=4, **SWIN), PIXELS, 3),
    "convnext": (
        ConvNextModel,
        ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]),
        PIXELS,
        5,
    ),
}
"""Name -> class, configuration, inputs, number of blocks."""


def learned(model: nn.Module, inputs: dict, again: bool) -> tuple[dict, int]:
    """Gradients by name, and how many numbers were kept for them."""
    kept = []
    blocks = map(model.get_submodule, blocks_of_all(model))
    model.zero_grad()
    with (
        recomputed(blocks) if again else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        output = model(**inputs)
        (output.logits if "logits" in output else output.last_hidden_state).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sum(kept)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_and_activations_fewer(name):
    kind, config, inputs, count = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    assert len(blocks_of_all(model)) == count
    (plain, whole), (again, kept) = (learned(model, inputs, on) for on in (False, True))
    assert plain.keys() == again.keys() and plain
    assert max(gradient.abs().max() for gradient in plain.values()) > 0
    for tensor, gradient in plain.items():
        torch.testing.assert_close(again[tensor], gradient, rtol=0, atol=1e-6)
    assert kept < 0.35 * whole
