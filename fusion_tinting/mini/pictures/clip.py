"""`clip-mini_8`, `_14`, `_20`: a tiny CLIP, and experts that are its vision tower."""

import itertools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerFast

from fusion_tinting.mini.pictures import tiny_clip
from fusion_tinting.mini.pictures.canvas import SIZE
from fusion_tinting.mini.pictures.recipe import (
    IMAGE_PROCESSOR,
    PictureRecipe,
    fit_classifier,
    pixel_values,
)
from fusion_tinting.mini.pictures.task import Task
from fusion_tinting.mini.pictures.tasks import TASKS
from fusion_tinting.mini.recipe import Build
from fusion_tinting.mini.training import Advance, Training, endless_batches


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(PictureRecipe):
    """A CLIP and experts that are vision towers, as FusionBench's own CLIP pools have them."""

    def pretrain(self, build: Build, folder: Path, advance: Advance) -> None:
        """Pre-train a CLIP on captioned images and save it with its processor.

        Each image is to find its caption among those of every class of every task. That is CLIP's
        contrastive loss with a fixed set of captions: a batch of a few classes would repeat captions.
        """
        torch.manual_seed(build.seed)
        tasks = [TASKS[name] for name in self.tasks]
        tokenizer = tiny_clip.make_caption_tokenizer(tasks)
        model = tiny_clip.make_model(self.width, self.layers, tokenizer).train()
        data = self.pretraining_images(build.seed)
        templates = itertools.cycle(_tokenized_captions(tokenizer, tasks))
        batches = endless_batches(len(data[1]), self.pretrain_batch, [build.seed, 1])

        def logits(images: np.ndarray) -> Tensor:
            texts = tiny_clip.text_features(model, next(templates))
            return model.logit_scale.exp() * tiny_clip.image_features(model, pixel_values(images)) @ texts.T

        training = Training(
            self.pretrain_steps, self.pretrain_lr, weight_decay=0.05, warmup=0.15, clip=1.0, fused=True
        )
        fit_classifier(logits, model.parameters(), data, batches, training, advance)
        model.eval().save_pretrained(folder)
        _save_processor(folder, tokenizer)

    def finetune(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Fine-tune the vision tower on one task, against its zero-shot head, and save the tower."""
        data = self.load_arrays(build.zoo, task, "train")
        model = CLIPModel.from_pretrained(build.zoo / "pretrained")
        tokenizer = AutoTokenizer.from_pretrained(build.zoo / "pretrained")
        head = model.logit_scale.detach().exp() * tiny_clip.zero_shot_head(model, tokenizer, TASKS[task])
        tower = model.vision_model.train()
        batches = endless_batches(
            len(data[1]), self.expert_batch, [build.seed, 2, zlib.crc32(task.encode())]
        )

        def logits(images: np.ndarray) -> Tensor:
            return tiny_clip.image_features(model, pixel_values(images)) @ head.T

        training = Training(self.expert_steps, self.expert_lr, weight_decay=0, warmup=None, fused=True)
        fit_classifier(logits, tower.parameters(), data, batches, training, advance)
        # Saved as a `CLIPVisionModel` checkpoint, like FusionBench's own experts.
        tower.eval().save_pretrained(folder)


def _tokenized_captions(tokenizer: PreTrainedTokenizerFast, tasks: list[Task]) -> list[dict[str, Tensor]]:
    """Return all classes' captions tokenized, once for each number of template."""
    count = max(len(task.templates) for task in tasks)
    captions = [
        [text for task in tasks for text in task.captions(i % len(task.templates))] for i in range(count)
    ]
    return [dict(tokenizer(each, padding=True, return_tensors="pt")) for each in captions]


def _save_processor(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what `CLIPProcessor.from_pretrained(folder)` reads."""
    tokenizer.save_pretrained(folder)
    side = {"height": SIZE, "width": SIZE}
    processor = IMAGE_PROCESSOR | {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor",
        "do_convert_rgb": True, "size": side, "do_center_crop": False, "crop_size": side, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        ClipRecipe(name="clip-mini_8", tasks=tuple(TASKS)[:8], minutes="about 3 minutes"),
        # Pre-training in proportion to the tasks, so that each is seen as often.
        ClipRecipe(
            name="clip-mini_14", tasks=tuple(TASKS)[:14], pretrain_steps=2100, minutes="about 5 minutes"
        ),
        ClipRecipe(
            name="clip-mini_20", tasks=tuple(TASKS)[:20], pretrain_steps=3000, minutes="about 8 minutes"
        ),
        ClipRecipe(
            name="clip-micro_3", tasks=("mini-digits", "mini-textures", "mini-signs"),
            train=120, val=60, test=60, width=32, layers=2, web_images=120, pretrain_steps=20,
            pretrain_batch=32, expert_steps=10, minutes="a few seconds", workers=0,
        ),
    )
}  # fmt: skip
"""Name -> recipe: the benchmark in three sizes, and a far smaller one of the same kind for tests."""
