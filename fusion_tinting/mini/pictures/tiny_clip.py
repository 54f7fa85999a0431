"""A CLIP small enough to train in a minute: its tokenizer, configuration, initialization and features."""

import re

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from fusion_tinting.mini.pictures.canvas import SIZE
from fusion_tinting.mini.pictures.task import Task
from fusion_tinting.mini.tokenizer import make_tokenizer

TEXT_WIDTH = 64
TEXT_LENGTH = 16


def make_caption_tokenizer(tasks: list[Task]) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary is the words of the tasks' captions."""
    captions = [text for task in tasks for i in range(len(task.templates)) for text in task.captions(i)]
    words = sorted({word for caption in captions for word in re.findall(r"\w+|[^\w\s]+", caption.lower())})
    # The end token comes last: CLIP's text tower may pool at the largest id of a caption.
    return make_tokenizer(
        ["<pad>", "<unk>", "<start>", *words, "<end>"], TEXT_LENGTH, {"single": "<start> $A <end>"},
        lowercase=True, bos_token="<start>", eos_token="<end>", unk_token="<unk>", pad_token="<pad>",
    )  # fmt: skip


def make_model(width: int, layers: int, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Return an untrained CLIP; seed torch before.

    Args:
        width: Channels of the vision tower.
        layers: Its blocks.
        tokenizer: Its own.
    """
    config = CLIPConfig(
        projection_dim=64,
        logit_scale_init_value=2.66,
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": 8,
            "projection_dim": 64,
            "hidden_act": "gelu",
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": TEXT_LENGTH,
            "projection_dim": 64,
            "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    model = CLIPModel(config)
    initialize(model, layers)
    return model


@torch.no_grad()
def initialize(model: CLIPModel, layers: int) -> None:
    """Draw weights of the usual scale, one over the root of the fan-in.

    CLIP's own initialization is made for wide towers; at this width its activations all but vanish
    and training starts slowly.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            ends_residual_branch = name.endswith(("out_proj", "fc2"))
            gain = (2 * layers) ** -0.5 if ends_residual_branch else 1.0
            nn.init.normal_(module.weight, std=gain * fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    nn.init.normal_(model.vision_model.embeddings.class_embedding, std=0.3)


def image_features(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return normalized image embeddings `(B, 64)`."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return nn.functional.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return normalized caption embeddings `(captions, 64)`."""
    pooled = model.text_model(**tokens).pooler_output
    return nn.functional.normalize(model.text_projection(pooled), dim=-1)


@torch.no_grad()
def zero_shot_head(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, task: Task) -> torch.Tensor:
    """Return class weights `(classes, 64)`: the mean caption embedding of each class, normalized."""
    captions = [task.captions(i) for i in range(len(task.templates))]
    tokens = [tokenizer(each, padding=True, return_tensors="pt") for each in captions]
    mean = torch.stack([text_features(model, dict(each)) for each in tokens]).mean(0)
    return nn.functional.normalize(mean, dim=-1)
