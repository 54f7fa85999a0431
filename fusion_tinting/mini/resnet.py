"""Three image tasks, a tiny ResNet with batch norm and an expert a task, made on the spot on first use.

The base learns to name clean pictures of all tasks' classes; an expert is the base, all its weights
fine-tuned on the pictures of one task's camera.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ResNetConfig, ResNetForImageClassification

from fusion_tinting.errors import unknown

from . import data
from .canvas import SIZE
from .fitting import endless_batches, fit
from .once import UNFINISHED, built_once, reproducible
from .recipe import Recipe
from .task import SPLITS
from .tasks import TASKS
from .tiny_clip import PIXEL_MEAN, PIXEL_STD, pixel_values
from .training import pretraining_images

THREE = ("mini-counts", "mini-textures", "mini-cards")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="resnet-mini_3", tasks=THREE, train=3000, val=1500, test=1000, width=16, layers=1,
            web_images=1000, pretrain_steps=500, pretrain_lr=3e-3, expert_steps=400, expert_lr=4e-3,
            minutes="about a minute",
        ),
        Recipe(
            name="resnet-micro_3", tasks=THREE, train=90, val=60, test=60, width=4, layers=1,
            web_images=90, pretrain_steps=10, pretrain_batch=32, expert_steps=5, minutes="a few seconds",
        ),
    )
}  # fmt: skip
"""Recipe name -> recipe: the benchmark, and a far smaller one of the same make for tests."""


def build(seed: int = 0, recipe: str = "resnet-mini_3") -> Path:
    """The folder with ``pretrained/``, ``<task>/`` (complete classifiers with their image processor) and
    ``data/<task>/{train,val,test}``, built first where it is not cached yet.

    Args:
        seed: all randomness follows from it: other seeds give other images and other models.
        recipe: ``resnet-mini_3`` or the tiny ``resnet-micro_3``.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    sizes = RECIPES[recipe]
    return built_once(
        f"{recipe}-{sizes.fingerprint()}-seed{seed}", lambda folder: _build_in(folder, sizes, seed)
    )


def load_dataset(task: str, split: str, seed: int = 0, recipe: str = "resnet-mini_3"):
    """One split of a task as a `datasets.Dataset` with features `image` and `label`."""
    if task not in THREE:
        raise unknown("task", task, THREE)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return data.read(build(seed, recipe), task, split)


def make_model(recipe: Recipe, classes: int) -> ResNetForImageClassification:
    """An untrained ResNet of four stages."""
    widths = [recipe.width * factor for factor in (1, 2, 4, 8)]
    config = ResNetConfig(
        embedding_size=recipe.width, hidden_sizes=widths, depths=[recipe.layers] * 4,
        layer_type="basic", num_labels=classes,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def _build_in(folder: Path, recipe: Recipe, seed: int) -> None:
    steps = recipe.pretrain_steps + len(recipe.tasks) * recipe.expert_steps
    about = f"Building {recipe.name} (once, {recipe.minutes})"
    with reproducible(seed), tqdm(total=steps, desc=about, unit="step") as bar:
        base = pretrain(recipe, seed, bar)
        save(base, folder / "pretrained")
        for number, task in enumerate(recipe.tasks):
            data.write(recipe, TASKS[task], folder / "data" / task, seed)
            expert = finetune(recipe, base, folder, task, seed + number, bar)
            save(expert, folder / task)


def pretrain(recipe: Recipe, seed: int, bar: tqdm) -> ResNetForImageClassification:
    """Which class of which task does a clean picture show?"""
    images, labels = pretraining_images(recipe, seed, lambda _: None)
    model = make_model(recipe, sum(len(TASKS[task].classnames) for task in recipe.tasks))
    return _train(
        model, images, labels, recipe.pretrain_steps, recipe.pretrain_batch, recipe.pretrain_lr, seed, bar
    )


def finetune(
    recipe: Recipe, base: ResNetForImageClassification, folder: Path, task: str, seed: int, bar: tqdm
) -> ResNetForImageClassification:
    """The expert of a task, with the task's own head, which starts as the base's rows of its classes."""
    classes = [len(TASKS[other].classnames) for other in recipe.tasks]
    first = sum(classes[: recipe.tasks.index(task)])
    model = make_model(recipe, len(TASKS[task].classnames))
    model.resnet.load_state_dict(base.resnet.state_dict())
    rows = slice(first, first + model.config.num_labels)
    with torch.no_grad():
        model.classifier[1].weight.copy_(base.classifier[1].weight[rows])
        model.classifier[1].bias.copy_(base.classifier[1].bias[rows])
    images, labels = data.read_arrays(folder, task, "train")
    labels = torch.from_numpy(labels)
    return _train(
        model, images, labels, recipe.expert_steps, recipe.expert_batch, recipe.expert_lr, seed, bar
    )


def _train(model, images, labels, steps: int, size: int, rate: float, seed: int, bar: tqdm):
    """Adam on the cross-entropy of shuffled batches, in `train()` mode: the statistics follow."""
    pixels = pixel_values(images)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    batches = endless_batches(len(labels), size, np.random.default_rng([seed, 3]))

    def loss() -> Tensor:
        batch = next(batches)
        return nn.functional.cross_entropy(model(pixels[batch]).logits, labels[batch])

    model.train()
    fit(loss, optimiser, schedule, steps, bar.update)
    return model.eval()


def save(model: ResNetForImageClassification, folder: Path) -> None:
    """A classifier with its image processor, as the hub has them; the folder appears when complete."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    model.save_pretrained(unfinished)
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": False,
        "size": {"shortest_edge": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
    }
    (unfinished / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    unfinished.rename(folder)
