"""`resnet-mini_3`: a tiny ResNet with batch norm and an expert for each task.

The base learns to name clean pictures of all tasks' classes; an expert is the base, all its weights
fine-tuned on the pictures of one task's camera.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from fusion_tinting.mini.pictures.canvas import SIZE
from fusion_tinting.mini.pictures.recipe import (
    IMAGE_PROCESSOR,
    PictureRecipe,
    fit_classifier,
    pixel_values,
)
from fusion_tinting.mini.pictures.tasks import TASKS
from fusion_tinting.mini.recipe import Build
from fusion_tinting.mini.training import Advance, Training, endless_batches


@dataclass(frozen=True, kw_only=True)
class ResNetRecipe(PictureRecipe):
    """Complete classifiers with their image processors, as the hub has them."""

    def pretrain(self, build: Build, folder: Path, advance: Advance) -> None:
        """Learn which class of which task a clean picture shows."""
        torch.manual_seed(build.seed)
        data = self.pretraining_images(build.seed)
        model = self._make_model(sum(len(TASKS[task].classnames) for task in self.tasks))
        batches = endless_batches(len(data[1]), self.pretrain_batch, [build.seed, 3])
        _train(model, data, batches, Training(self.pretrain_steps, self.pretrain_lr, warmup=0.15), advance)
        _save(model, folder)

    def finetune(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Train the expert of a task, whose head starts as the base's rows of the task's classes."""
        data = self.load_arrays(build.zoo, task, "train")
        model = self._make_model(len(TASKS[task].classnames))
        self._load_base(model, task, build.zoo)
        batches = endless_batches(len(data[1]), self.expert_batch, [build.seed + self.tasks.index(task), 3])
        _train(model, data, batches, Training(self.expert_steps, self.expert_lr, warmup=0.15), advance)
        _save(model, folder)

    def _make_model(self, classes: int) -> ResNetForImageClassification:
        """Return an untrained ResNet of four stages."""
        widths = [self.width * factor for factor in (1, 2, 4, 8)]
        config = ResNetConfig(
            embedding_size=self.width, hidden_sizes=widths, depths=[self.layers] * 4,
            layer_type="basic", num_labels=classes,
        )  # fmt: skip
        return ResNetForImageClassification(config)

    @torch.no_grad()
    def _load_base(self, model: ResNetForImageClassification, task: str, zoo: Path) -> None:
        """Fill `model` with the base's encoder and the rows of its head that are the task's."""
        base = ResNetForImageClassification.from_pretrained(zoo / "pretrained")
        model.resnet.load_state_dict(base.resnet.state_dict())
        first = sum(len(TASKS[other].classnames) for other in self.tasks[: self.tasks.index(task)])
        rows = slice(first, first + model.config.num_labels)
        model.classifier[1].weight.copy_(base.classifier[1].weight[rows])
        model.classifier[1].bias.copy_(base.classifier[1].bias[rows])


def _train(
    model: ResNetForImageClassification,
    data: tuple[np.ndarray, Tensor],
    batches: Iterator[Tensor],
    training: Training,
    advance: Advance,
) -> None:
    """Minimize the cross-entropy in `train()` mode: the batch-norm statistics follow."""
    model.train()

    def logits(images: np.ndarray) -> Tensor:
        return model(pixel_values(images)).logits

    fit_classifier(logits, model.parameters(), data, batches, training, advance)
    model.eval()


def _save(model: ResNetForImageClassification, folder: Path) -> None:
    model.save_pretrained(folder)
    kind = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIZE}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(IMAGE_PROCESSOR | kind, indent=2), encoding="utf-8"
    )


THREE = ("mini-counts", "mini-textures", "mini-cards")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        ResNetRecipe(
            name="resnet-mini_3", tasks=THREE, train=3000, val=1500, test=1000, width=16, layers=1,
            web_images=1000, pretrain_steps=500, pretrain_lr=3e-3, expert_steps=400, expert_lr=4e-3,
            minutes="about a minute",
        ),
        ResNetRecipe(
            name="resnet-micro_3", tasks=THREE, train=90, val=60, test=60, width=4, layers=1,
            web_images=90, pretrain_steps=10, pretrain_batch=32, expert_steps=5,
            minutes="a few seconds", workers=0,
        ),
    )
}  # fmt: skip
"""Name -> recipe: the benchmark, and a far smaller one of the same kind for tests."""
