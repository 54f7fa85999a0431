"""How the tiny CLIP is pre-trained, and how an expert is fine-tuned from it."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

from . import tiny_clip
from .canvas import FIELD, WEB
from .fitting import Advance, endless_batches, fit
from .recipe import Recipe
from .task import Task
from .tasks import TASKS


def pretraining_images(recipe: Recipe, seed: int, advance: Advance):
    """Web pictures of all tasks and a few of the tasks' own: images, and each one's caption number.

    Only the train split's photographs, fonts and handwriting are used.
    """
    images, captions, first = [], [], 0
    for name in recipe.tasks:
        for style, count in ((WEB, recipe.web_images), (FIELD, recipe.field_images)):
            # Another seed than the tasks' data, so that no training image is seen here already.
            pictures, labels = TASKS[name].render(count, "train", style, seed + 1_000_003)
            images.append(pictures)
            captions.append(labels + first)
        first += len(TASKS[name].classnames)
        advance(1)
    return np.concatenate(images), torch.from_numpy(np.concatenate(captions))


def pretrain(recipe: Recipe, seed: int, folder: Path, advance: Advance) -> None:
    """Pre-train a CLIP on captioned images and save it, with its processor, as a complete folder.

    Each image is to find its caption among those of every class of every task. That is CLIP's
    contrastive loss with a fixed set of captions: a batch of a few classes would repeat captions.
    """
    torch.manual_seed(seed)
    tasks = [TASKS[name] for name in recipe.tasks]
    tokenizer = tiny_clip.make_tokenizer(tasks)
    model = tiny_clip.make_model(recipe, tokenizer).train()
    images, caption_of = pretraining_images(recipe, seed, advance)
    tokens = _tokenised_captions(tokenizer, tasks)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.pretrain_lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.pretrain_lr, total_steps=recipe.pretrain_steps, pct_start=0.15
    )
    batches = endless_batches(len(images), recipe.pretrain_batch, np.random.default_rng([seed, 1]))
    templates = itertools.cycle(tokens)

    def loss() -> Tensor:
        batch = next(batches)
        texts = tiny_clip.text_features(model, next(templates))
        features = tiny_clip.image_features(model, tiny_clip.pixel_values(images[batch]))
        logits = model.logit_scale.exp() * features @ texts.T
        return nn.functional.cross_entropy(logits, caption_of[batch])

    fit(loss, optimiser, schedule, recipe.pretrain_steps, advance, clip=1.0)
    model.eval().save_pretrained(folder)
    tiny_clip.save_processor(folder, tokenizer)


def finetune(
    recipe: Recipe, task: Task, data, zoo: Path, folder: Path, seed: int, advance: Advance
) -> None:
    """Fine-tune the vision tower on one task, against its zero-shot head, and save the tower.

    `data` holds the training images ``(N, SIZE, SIZE, 3)`` and labels ``(N,)``.
    """
    images, labels = data
    model = CLIPModel.from_pretrained(zoo / "pretrained")
    tokenizer = AutoTokenizer.from_pretrained(zoo / "pretrained")
    head = model.logit_scale.detach().exp() * tiny_clip.zero_shot_head(model, tokenizer, task)
    tower = model.vision_model.train()
    pixels, labels = tiny_clip.pixel_values(images), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(tower.parameters(), lr=recipe.expert_lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.expert_steps)
    rng = np.random.default_rng([seed, 2, zlib.crc32(task.name.encode())])
    batches = endless_batches(len(labels), recipe.expert_batch, rng)

    def loss() -> Tensor:
        batch = next(batches)
        logits = tiny_clip.image_features(model, pixels[batch]) @ head.T
        return nn.functional.cross_entropy(logits, labels[batch])

    fit(loss, optimiser, schedule, recipe.expert_steps, advance)
    # Saved as a `CLIPVisionModel` checkpoint, like FusionBench's own experts.
    tower.eval().save_pretrained(folder)


def _tokenised_captions(tokenizer, tasks: list[Task]) -> list[dict[str, Tensor]]:
    """All classes' captions tokenised, once for each number of template."""
    count = max(len(task.templates) for task in tasks)
    captions = [
        [text for task in tasks for text in task.captions(i % len(task.templates))] for i in range(count)
    ]
    return [dict(tokenizer(each, padding=True, return_tensors="pt")) for each in captions]
