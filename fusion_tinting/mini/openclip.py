"""`openclip-mini_3`: three tasks of the mini benchmark and a tiny OpenCLIP tower, made on first use.

A zoo is laid out as released checkpoints once they are converted: `zeroshot.safetensors`,
`<task>/finetuned.safetensors` and `head_<task>.safetensors`; and `data/<task>/<split>`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from tqdm import tqdm

from fusion_tinting.families.open_clip import Architecture, ClassificationHead, VisualEncoder
from fusion_tinting.families.open_clip_files import load_encoder
from fusion_tinting.fusionbench.pools.open_clip import CheckedOpenCLIPVisionModelPool
from fusion_tinting.fusionbench.taskpools.open_clip import TintedOpenCLIPVisionModelTaskPool

from . import data, training
from .canvas import SIZE
from .fitting import fit
from .once import built_once, reproducible
from .recipe import Recipe
from .tasks import TASKS

RECIPE = Recipe(
    name="openclip-mini_3",
    tasks=("mini-clocks", "mini-shapes", "mini-cards"),
    pretrain_steps=400,
    minutes="about two minutes",
)
EMBEDDING = 64
SCALE = 18.0
"""About the norm of a class's weights, into which the released heads have the logit scale multiplied."""


def build(seed: int = 0) -> Path:
    """The folder of the zoo of a seed, built first where it is not cached yet."""
    name = f"{RECIPE.name}-{RECIPE.fingerprint()}-seed{seed}"
    return built_once(name, lambda folder: make(folder, RECIPE, seed))


def load_dataset(task: str, split: str, seed: int = 0):
    """One split of a task as a `datasets.Dataset`; see `fusion_tinting.mini.load_dataset`."""
    return data.read(build(seed), task, split)


class MiniOpenCLIPModelPool(CheckedOpenCLIPVisionModelPool):
    """Our OpenCLIP model pool over a zoo, built when missing: paths are relative to its folder.

    Args:
        zoo_seed: the zoo's seed.
    """

    _config_mapping = CheckedOpenCLIPVisionModelPool._config_mapping | {"zoo_seed": "zoo_seed"}

    def __init__(self, models, classification_heads, *, zoo_seed=0, **kwargs):
        models, heads = (_inside(build(zoo_seed), files) for files in (models, classification_heads))
        super().__init__(models, classification_heads=heads, **kwargs)
        self.zoo_seed = zoo_seed


class MiniOpenCLIPTaskPool(TintedOpenCLIPVisionModelTaskPool):
    """Our OpenCLIP task pool with a zoo's heads; beside its own options it takes `zoo_seed`."""

    _config_mapping = TintedOpenCLIPVisionModelTaskPool._config_mapping | {"zoo_seed": "zoo_seed"}

    def __init__(self, test_datasets, classification_heads, *, zoo_seed=0, **kwargs):
        heads = _inside(build(zoo_seed), classification_heads)
        super().__init__(test_datasets, classification_heads=heads, **kwargs)
        self.zoo_seed = zoo_seed


def _inside(folder: Path, files) -> dict[str, str]:
    return {name: str(folder / file) for name, file in files.items()}


def make(folder: Path, recipe: Recipe, seed: int) -> None:
    """Fill the folder of a zoo, on one thread; the caller's random state stays as it is."""
    steps = recipe.pretrain_steps + len(recipe.tasks) * (recipe.expert_steps + 1)
    about = f"Building {recipe.name} (once, {recipe.minutes})"
    with reproducible(seed), tqdm(total=steps, desc=about, unit="step") as bar:
        heads = _pretrain(folder, recipe, seed, bar.update)
        for task, head in heads.items():
            data.write(recipe, TASKS[task], folder / "data" / task, seed)
            bar.update()
            head.save(folder / f"head_{task}.safetensors")
            _finetune(folder, recipe, task, head, seed, bar.update)


def _pretrain(folder: Path, recipe: Recipe, seed: int, advance) -> dict[str, ClassificationHead]:
    """Train a tower to tell all classes of all tasks apart; the head of each task is its part of the whole.

    That is CLIP's loss with an embedding learnt for every class in place of a text tower.
    """
    encoder = _untrained(recipe)
    images, labels = training.pretraining_images(recipe, seed, lambda _: None)
    counts = [len(TASKS[task].classnames) for task in recipe.tasks]
    weight = torch.randn(sum(counts), EMBEDDING) * SCALE * EMBEDDING**-0.5
    head = ClassificationHead(weight, None, normalize=True)
    sizes = {"lr": recipe.pretrain_lr, "steps": recipe.pretrain_steps, "batch_size": recipe.pretrain_batch}
    _train(encoder, head, images, labels, rng=np.random.default_rng([seed, 1]), advance=advance, **sizes)
    encoder.save(folder / "zeroshot.safetensors")
    parts = zip(head.weight.detach().split(counts), head.bias.detach().split(counts), strict=True)
    return {
        task: ClassificationHead(w, b, normalize=True)
        for task, (w, b) in zip(recipe.tasks, parts, strict=True)
    }


def _finetune(
    folder: Path, recipe: Recipe, task: str, head: ClassificationHead, seed: int, advance
) -> None:
    """Fine-tune the whole tower on one task, with its head as it is."""
    encoder = load_encoder(folder / "zeroshot.safetensors", None).requires_grad_(True)
    images, labels = data.read_arrays(folder, task, "train")
    sizes = {"lr": recipe.expert_lr, "steps": recipe.expert_steps, "batch_size": recipe.expert_batch}
    rng = np.random.default_rng([seed, 2, zlib.crc32(task.encode())])
    frozen = head.requires_grad_(False)
    _train(encoder, frozen, images, torch.from_numpy(labels), rng=rng, advance=advance, **sizes)
    encoder.save(folder / task / "finetuned.safetensors")


def _untrained(recipe: Recipe) -> VisualEncoder:
    vision = {"image_size": SIZE, "patch_size": 8, "width": recipe.width, "layers": recipe.layers}
    architecture = Architecture("ViT-mini", EMBEDDING, {**vision, "head_width": 32, "mlp_ratio": 2.0})
    tower = architecture.build("cpu")
    return VisualEncoder(architecture, {f"model.visual.{n}": t for n, t in tower.state_dict().items()})


def _train(encoder, head, images, labels, *, lr, steps, batch_size, rng, advance) -> None:
    """Minimise the cross-entropy over every parameter that is not frozen.

    Args:
        images: (N, SIZE, SIZE, 3) uint8.
        labels: (N,).
    """
    parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.15)

    def loss() -> Tensor:
        batch = rng.choice(len(images), batch_size, replace=False)
        return nn.functional.cross_entropy(head(encoder(_pixels(images[batch]))), labels[batch])

    encoder.train()
    fit(loss, optimiser, schedule, steps, advance, clip=1.0)
    encoder.eval()


def _pixels(images: np.ndarray) -> Tensor:
    """As the encoder's own preprocessing gives them, (N, 3, SIZE, SIZE)."""
    scaled = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (scaled - mean) / std
