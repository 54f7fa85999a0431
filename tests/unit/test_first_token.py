"""What is left out of a vision transformer's last block changes nothing but the work."""

import open_clip
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_tinting.families.clip import CLIPImageEncoder
from fusion_tinting.families.first_token import last_block_of
from fusion_tinting.families.open_clip import NO_TEXT, reads_first_token
from fusion_tinting.families.open_clip import first_token as open_clip_first_token
from fusion_tinting.tints import active

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
}


def clip_tower(**config) -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 3, **config})).double().eval()


def open_clip_tower(**config) -> nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 4, "width": 24, "head_width": 8, "layers": 3, **config}
    return open_clip.CLIP(12, vision, NO_TEXT).visual.double().eval()


def gradients(model: nn.Module, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parameter name -> gradient of a sum of the outputs, each with a weight of its own."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((weights * output).sum(), parameters), strict=True))


def equal_in_value_and_gradient(model: nn.Module, ours: torch.Tensor, whole: torch.Tensor) -> None:
    torch.testing.assert_close(ours, whole, rtol=1e-11, atol=1e-12)
    expected = gradients(model, whole)
    assert any(gradient.abs().max() > 1e-6 for gradient in expected.values())
    for name, gradient in gradients(model, ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 1}, {"hidden_act": "gelu"}], ids=str)
def test_clips_embedding_and_gradients_are_the_whole_towers(config):
    tower = clip_tower(**config)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    whole = nn.functional.normalize(tower(pixel_values=images).pooler_output, dim=-1)
    equal_in_value_and_gradient(tower, CLIPImageEncoder(tower, nn.Identity())(images), whole)


@pytest.mark.parametrize("config", [{}, {"layers": 1}, {"ls_init_value": 0.1}], ids=str)
def test_open_clips_embedding_and_gradients_are_the_whole_towers(config):
    visual = open_clip_tower(**config)
    assert reads_first_token(visual)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with last_block_of(visual, "transformer.resblocks", open_clip_first_token):
        ours = visual(images)
    equal_in_value_and_gradient(visual, ours, visual(images))


@pytest.mark.parametrize(
    "config",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_heads": 3},
        {"qk_norm": True},
        {"output_tokens": True},
    ],
    ids=str,
)
def test_a_tower_that_reads_more_than_the_first_token_is_left_whole(config):
    assert not reads_first_token(open_clip_tower(**config))


def test_a_tinted_last_block_is_the_one_that_is_asked():
    tower, other = clip_tower(), clip_tower()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    encoder, tint = CLIPImageEncoder(tower, nn.Identity()), other.encoder.layers[-1]
    with active(encoder, "vision_model.encoder.layers.2", tint):
        tinted = encoder(images)
        whole = nn.functional.normalize(tower(pixel_values=images).pooler_output, dim=-1)
    torch.testing.assert_close(tinted, whole, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(encoder(images), tinted)


def test_a_tower_is_as_it_was_after_an_error():
    tower = clip_tower()
    blocks = list(tower.encoder.layers)
    with pytest.raises(ValueError, match="image size"):
        CLIPImageEncoder(tower, nn.Identity())(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert list(tower.encoder.layers) == blocks


FOUR_LAYERS = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize(
    ("config", "share"), [(FOUR_LAYERS, 0.19), ({}, 0.07)], ids=["four layers", "ViT-B/32"]
)
def test_the_share_of_operations_that_is_saved_is_the_docstrings(config, share):
    tower = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
    images = torch.zeros(1, 3, tower.config.image_size, tower.config.image_size)

    def operations(model: nn.Module) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        return counter.get_total_flops()

    saved = 1 - operations(CLIPImageEncoder(tower, nn.Identity())) / operations(tower)
    assert saved == pytest.approx(share, abs=0.005)
