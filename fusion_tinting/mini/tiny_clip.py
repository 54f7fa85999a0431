"""A CLIP small enough to train in a minute: configuration, initialisation, tokenizer and processor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from .canvas import SIZE
from .recipe import Recipe
from .task import Task

TEXT_WIDTH = 64
TEXT_LENGTH = 16
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


def make_tokenizer(tasks: list[Task]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the words of the tasks' captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    captions = [text for task in tasks for i in range(len(task.templates)) for text in task.captions(i)]
    words = sorted({word for caption in captions for word in re.findall(r"\w+|[^\w\s]+", caption.lower())})
    # The end token comes last: CLIP's text tower may pool at the largest id of a caption.
    vocabulary = ["<pad>", "<unk>", "<start>", *words, "<end>"]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(token, ids[token]) for token in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """An untrained CLIP; seed torch before."""
    config = CLIPConfig(
        projection_dim=64,
        logit_scale_init_value=2.66,
        vision_config={
            "hidden_size": recipe.width,
            "intermediate_size": 2 * recipe.width,
            "num_hidden_layers": recipe.layers,
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
    initialise(model, recipe.layers)
    return model


@torch.no_grad()
def initialise(model: CLIPModel, layers: int) -> None:
    """Weights of the usual scale, one over the root of the fan-in.

    CLIP's own initialisation is made for wide towers; at this width its activations all but vanish
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


def save_processor(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what ``CLIPProcessor.from_pretrained(folder)`` reads.

    The image part is written by hand: it is then the same whether transformers would choose its
    torchvision or its PIL image processor.
    """
    tokenizer.save_pretrained(folder)
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": False,
        "size": {"height": SIZE, "width": SIZE},
        "do_center_crop": False,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2))


def pixel_values(images: np.ndarray) -> torch.Tensor:
    """Images ``(N, SIZE, SIZE, 3)`` uint8 as the processor would give them, ``(N, 3, SIZE, SIZE)``."""
    scaled = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    return (scaled - PIXEL_MEAN) / PIXEL_STD


def image_features(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised image embeddings ``(B, 64)``."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return nn.functional.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Normalised caption embeddings ``(captions, 64)``."""
    pooled = model.text_model(**tokens).pooler_output
    return nn.functional.normalize(model.text_projection(pooled), dim=-1)


@torch.no_grad()
def zero_shot_head(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, task: Task) -> torch.Tensor:
    """Class weights ``(classes, 64)``: the mean caption embedding of each class, normalised."""
    captions = [task.captions(i) for i in range(len(task.templates))]
    tokens = [tokenizer(each, padding=True, return_tensors="pt") for each in captions]
    mean = torch.stack([text_features(model, dict(each)) for each in tokens]).mean(0)
    return nn.functional.normalize(mean, dim=-1)
