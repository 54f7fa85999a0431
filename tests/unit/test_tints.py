import pytest
import torch
from torch import nn

from fusion_tinting.tints import active, make_tints, resolve_layer


@pytest.mark.parametrize(
    ("layer", "resolved"),
    [
        ("head", "head"),
        (None, None),
        ("block:0", "blocks.0"),
        ("block:-1", "blocks.2"),
        ("stem", "stem"),
        ("blocks.1", "blocks.1"),
    ],
)
def test_layers_are_found(world, layer, resolved):
    assert resolve_layer(world.pretrained, layer) == resolved


def test_an_ending_that_only_one_module_has_is_enough(world):
    tower = nn.ModuleDict({"vision": world.pretrained})
    assert resolve_layer(tower, "norm") == "vision.norm"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("steam", "Did you mean `stem`"),
        ("block:3", "from -3 to 2"),
        ("block:last", "from -3 to 2"),
        ("dropout", "no parameters"),
    ],
)
def test_layers_that_cannot_be_tinted(world, layer, message):
    with pytest.raises(ValueError, match=message):
        resolve_layer(world.pretrained, layer)


def test_several_matches_are_listed():
    towers = nn.ModuleDict({side: nn.ModuleDict({"norm": nn.LayerNorm(2)}) for side in ("a", "b")})
    with pytest.raises(ValueError, match=r"matches 2 submodules: \['a.norm', 'b.norm'\]"):
        resolve_layer(towers, "norm")


def test_an_encoder_without_blocks():
    with pytest.raises(ValueError, match="ModuleList of equal blocks"):
        resolve_layer(nn.Linear(2, 2), "block:0")


def test_a_head_without_parameters(world):
    heads = {**world.heads, "dogs": nn.Identity()}
    with pytest.raises(ValueError, match="head of `dogs` has no parameters"):
        make_tints("head", world.experts, heads)


def test_tints_start_at_the_experts_layer_and_are_copies(world):
    tints = make_tints("blocks.1", world.experts, world.heads)
    for tint, expert in zip(tints, world.experts.values(), strict=True):
        assert torch.equal(tint.weight, expert.blocks[1].weight)
        assert tint.weight.data_ptr() != expert.blocks[1].weight.data_ptr()


def test_a_tint_is_active_only_within_its_context(world):
    encoder, x = world.pretrained.eval(), torch.randn(2, 5)
    tint = world.experts["cats"].blocks[1]
    before = encoder(x)
    with active(encoder, "blocks.1", tint):
        assert not torch.equal(encoder(x), before)
        with pytest.raises(RuntimeError, match="from inside"), active(encoder, "stem", tint):
            raise RuntimeError("from inside")
    assert torch.equal(encoder(x), before)
