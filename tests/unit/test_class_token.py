"""What is left out of a vision transformer's last block changes nothing but the work."""

import open_clip
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from fusion_tinting.families import clip
from fusion_tinting.families import open_clip as family
from fusion_tinting.families.clip import CLIPImageEncoder
from fusion_tinting.method.tints import view

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
    return open_clip.CLIP(12, vision, family.NO_TEXT).visual.double().eval()


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
    assert family._is_as_made(visual)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    equal_in_value_and_gradient(visual, family.class_token(visual, images), visual(images))


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
def test_an_open_clip_tower_that_reads_more_than_the_class_token_is_run_whole(config):
    assert not family._is_as_made(open_clip_tower(**config))


class Louder(nn.Module):
    """A user's own attention around CLIP's."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, *args, **kwargs):
        output, weights = self.attention(*args, **kwargs)
        return 2 * output, weights


class Shifted(CLIPVisionModel):
    """A user's own tower, of CLIP's parts."""

    def forward(self, **kwargs):
        output = super().forward(**kwargs)
        output.pooler_output = output.pooler_output + 1
        return output


def with_own_attention() -> CLIPVisionModel:
    tower = clip_tower()
    tower.encoder.layers[-1].self_attn = Louder(tower.encoder.layers[-1].self_attn)
    return tower


def with_hook() -> CLIPVisionModel:
    tower = clip_tower()
    tower.encoder.layers[-1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    return tower


def of_another_class() -> CLIPVisionModel:
    return Shifted(clip_tower().config).double().eval()


def of_another_family() -> nn.Module:
    torch.manual_seed(0)
    config = SiglipVisionConfig(**SMALL, num_hidden_layers=2, num_channels=3)
    return SiglipVisionModel(config).double().eval()


@pytest.mark.parametrize("make", [with_own_attention, with_hook, of_another_class, of_another_family])
def test_a_tower_that_somebody_changed_is_run_whole(make):
    tower, images = make(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    whole = nn.functional.normalize(tower(pixel_values=images).pooler_output, dim=-1)
    assert torch.equal(CLIPImageEncoder(tower, nn.Identity())(images), whole)


def test_a_tower_in_training_is_run_whole():
    assert clip._is_as_made(clip_tower())
    assert not clip._is_as_made(clip_tower().train())


def test_a_tower_inside_another_level_as_transformers_had_it_is_found():
    """Until 5.6 a `CLIPVisionModel` held its tower as `vision_model`."""
    outer = clip_tower()
    inner = clip_tower()
    outer.vision_model = inner
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(clip.class_token(outer, images), inner(pixel_values=images).pooler_output)
    assert clip._is_as_made(outer)


def test_a_tinted_last_block_is_the_one_that_is_asked():
    tower, other = clip_tower(), clip_tower()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    encoder, tint = CLIPImageEncoder(tower, nn.Identity()), other.encoder.layers[-1]
    with view(encoder, "vision_model.encoder.layers.2", tint) as seen:
        tinted = seen(images)
        pooled = seen.vision_model(pixel_values=images).pooler_output
        whole = nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(tinted, whole, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(encoder(images), tinted)


def test_images_of_another_size_are_refused_as_the_tower_refuses_them():
    with pytest.raises(ValueError, match="image size"):
        CLIPImageEncoder(clip_tower(), nn.Identity())(torch.zeros(1, 3, 8, 8, dtype=torch.float64))


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
    def operations(model: nn.Module) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, tower.config.image_size, tower.config.image_size))
        return counter.get_total_flops()

    with torch.device("meta"):  # operations are counted, not done
        tower = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
        saved = 1 - operations(CLIPImageEncoder(tower, nn.Identity())) / operations(tower)
    assert saved == pytest.approx(share, abs=0.005)
