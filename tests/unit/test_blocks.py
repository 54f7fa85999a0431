"""Which modules `block:<index>` names: of real architectures, on the meta device, and of one's own."""

import pytest
import torch
from torch import nn
from world import make_world

from fusion_tinting.method.blocks import blocks_of
from fusion_tinting.method.tints import resolve_layer, tintable

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
T5 = {"d_model": 16, "d_ff": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8}
TRANSFORMERS = {
    # What these names meant before stages, first blocks and `nn.Sequential` were known stays.
    "ViT": (SIZES, ("layers.0", "layers.2", 3)),
    "Bert": (SIZES, ("encoder.layer.0", "encoder.layer.2", 3)),
    "Albert": ({}, ("encoder.albert_layer_groups.0", "encoder.albert_layer_groups.0", 1)),
    "Llama": (SIZES, ("layers.0", "layers.2", 3)),
    "Lxmert": ({}, ("encoder.layer.0", "encoder.layer.8", 9)),
    # A first block with other parameters than the rest.
    "ModernBert": (SIZES, ("layers.0", "layers.2", 3)),
    "T5": (T5, ("encoder.block.0", "encoder.block.1", 2)),
    "DeepseekV3": ({**SIZES, "num_key_value_heads": 2, "n_routed_experts": 8}, ("layers.0", "layers.2", 3)),
    # Blocks of two classes.
    "Jamba": ({**SIZES, "num_hidden_layers": 8, "num_key_value_heads": 2}, ("layers.0", "layers.7", 8)),
    # Stages.
    "Swin": ({}, ("encoder.layers.0.blocks.0", "encoder.layers.3.blocks.1", 12)),
    "ConvNext": ({}, ("encoder.stages.0.layers.0", "encoder.stages.3.layers.2", 18)),
    "ResNet": ({}, ("encoder.stages.0.layers.0", "encoder.stages.3.layers.2", 16)),
    "Segformer": ({}, ("stages.0.blocks.0", "stages.3.blocks.1", 8)),
}
TORCHVISION = {
    "vit_b_16": ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11", 12),
    "resnet18": ("layer1.0", "layer4.1", 8),
    "convnext_tiny": ("features.1.0", "features.7.2", 18),
    "swin_t": ("features.1.0", "features.7.1", 12),
    "mobilenet_v2": ("features.1", "features.17", 17),
    "efficientnet_b0": ("features.1.0", "features.7.0", 16),
}
TIMM = {
    "vit_tiny_patch16_224": ("blocks.0", "blocks.11", 12),
    "convnext_atto": ("stages.0.blocks.0", "stages.3.blocks.1", 12),
    "swin_tiny_patch4_window7_224": ("layers.0.blocks.0", "layers.3.blocks.1", 12),
    "resnet18": ("layer1.0", "layer4.1", 8),
    "mixer_s32_224": ("blocks.0", "blocks.7", 8),
    "pvt_v2_b0": ("stages.0.blocks.0", "stages.3.blocks.1", 8),
}


def ends(encoder: nn.Module) -> tuple[str, str, int]:
    found = blocks_of(encoder)
    assert resolve_layer(encoder, "block:-1").name == found[-1]
    assert resolve_layer(encoder, f"block:{len(found) - 1}").name == found[-1]
    return found[0], found[-1], len(found)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_blocks_of_transformers(name):
    import transformers

    options, expected = TRANSFORMERS[name]
    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
    assert ends(model) == expected


@pytest.mark.parametrize("name", TORCHVISION)
def test_blocks_of_torchvision(name):
    import torchvision

    with torch.device("meta"):
        assert ends(getattr(torchvision.models, name)()) == TORCHVISION[name]


@pytest.mark.parametrize("name", TIMM)
def test_blocks_of_timm(name):
    import timm

    with torch.device("meta"):
        assert ends(timm.create_model(name)) == TIMM[name]


class Block(nn.Module):
    def __init__(self, width: int = 6, **parts: nn.Module):
        super().__init__()
        self.mix = nn.Linear(width, width)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return x + self.mix(x).tanh()


def experts(count: int) -> nn.ModuleList:
    return nn.ModuleList(Block() for _ in range(count))


def repeated(make, count: int = 3) -> list[nn.Module]:
    return [make() for _ in range(count)]


WRITTEN = {
    "sequential": (nn.Sequential(nn.Linear(5, 6), *repeated(Block), nn.LayerNorm(6)), "1", "3"),
    "sequences": (nn.Sequential(*repeated(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU()))), "0", "2"),
    "named": (
        nn.ModuleDict({"body": nn.Sequential(*repeated(Block)), "norm": nn.LayerNorm(6)}),
        "body.0",
        "body.2",
    ),
    "experts": (
        nn.ModuleDict({"layers": nn.ModuleList(Block(experts=experts(8)) for _ in range(3))}),
        "layers.0",
        "layers.2",
    ),
    "first dense": (
        nn.Sequential(nn.Embedding(9, 6), Block(), Block(experts=experts(8)), Block(experts=experts(8))),
        "1",
        "3",
    ),
    "outputs": (
        nn.ModuleDict(
            {
                "outputs": nn.ModuleList(nn.Linear(6, 2 + i) for i in range(8)),
                "layers": nn.ModuleList(repeated(Block)),
            }
        ),
        "layers.0",
        "layers.2",
    ),
    "stages of one block": (
        nn.ModuleDict({f"layer{i}": nn.Sequential(Block(4 * i)) for i in (1, 2, 3)}),
        "layer1.0",
        "layer3.0",
    ),
    "lists of stages": (
        nn.ModuleList(nn.ModuleList([Block(4 * i), Block(4 * i)]) for i in (1, 2)),
        "0.0",
        "1.1",
    ),
    "lists of one width": (
        nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(3)),
        "0.0",
        "2.1",
    ),
    "parts of a block": (
        nn.ModuleList(nn.ModuleList([Block(), nn.Sequential(nn.Linear(6, 6))]) for _ in range(3)),
        "0",
        "2",
    ),
    "pytorch's": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2),
        "layers.0",
        "layers.1",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", WRITTEN)
def test_blocks_as_people_write_them(name):
    encoder, first, last = WRITTEN[name]
    assert ends(encoder)[:2] == (first, last)
    listed = tintable(encoder)
    assert listed.count("head") == 1 and [n for n in listed if n.startswith("block:")] == [
        f"block:{index}" for index in range(len(blocks_of(encoder)))
    ]
    layers = [encoder.get_submodule(resolve_layer(encoder, layer).path) for layer in listed[1:]]
    counted = [id(p) for layer in layers for p in layer.parameters()]
    assert len(counted) == len(set(counted)) == len(list(encoder.parameters()))


@pytest.mark.quick
@pytest.mark.parametrize(
    "encoder",
    [
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()),
        nn.ModuleDict({"empty": nn.ModuleList(), "stem": nn.Linear(2, 2)}),
    ],
)
def test_layers_in_a_row_are_no_blocks(encoder):
    assert blocks_of(encoder) == []
    with pytest.raises(
        ValueError, match="needs a ModuleList or a Sequential of blocks; the encoder has none"
    ):
        resolve_layer(encoder, "block:0")


@pytest.mark.quick
def test_a_block_of_a_sequential_is_tinted():
    world = make_world()
    for model in (world.pretrained, *world.experts.values()):
        model.blocks = nn.Sequential(*(nn.Sequential(block) for block in model.blocks))
    tinted = world.tint(layer="block:1")
    assert tinted.layer == "blocks.1"
    for task, tint in tinted.tints.items():
        assert not torch.equal(tint[0].weight, world.experts[task].blocks[1][0].weight)


class Tied(nn.Module):
    """Token ids -> logits over the tokens, by the embeddings' own weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.logits = nn.Linear(6, 9, bias=False)
        self.logits.weight = self.embedding.weight


@pytest.mark.quick
def test_of_layers_that_share_a_tensor_the_first_is_no_tint():
    """The merged tensor has its name: the others can have one of their own, and the first keeps it."""
    encoder = Tied()
    assert tintable(encoder) == ["head", "block:0", "block:1", "logits"]
    with pytest.raises(ValueError, match=r"`layer=embedding` shares a tensor with `logits.weight`"):
        resolve_layer(encoder, "embedding")
    encoder.blocks[1].mix.weight = encoder.blocks[0].mix.weight
    with pytest.raises(ValueError, match=r"`layer=blocks.0` shares a tensor with `blocks.1.mix.weight`"):
        resolve_layer(encoder, "block:0")
    twice = nn.ModuleList([Block()] * 3)
    with pytest.raises(ValueError, match=r"`layer=0` shares a tensor with `1.mix.weight`"):
        resolve_layer(twice, "block:0")
