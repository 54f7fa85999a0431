"""`nyuv2-mini_3`: scenes, an encoder pre-trained on what they hold, and NYUv2's three experts."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fusion_bench.metrics.nyuv2.loss import loss_fn
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm.auto import tqdm

from fusion_tinting.errors import unknown
from fusion_tinting.families.dense import MODEL_FILE, DenseHead
from fusion_tinting.families.nyuv2_scenes import FOLDER, Scenes, as_seen
from fusion_tinting.mini import scenes
from fusion_tinting.mini.fitting import fit
from fusion_tinting.mini.once import built_once, reproducible
from fusion_tinting.mini.tiny_dense import TinyDilatedResNet, decoder
from fusion_tinting.run.files import read_tensors, write_tensors

VERSION = 2
"""Raise it whenever a zoo built by the new code would differ from one built by the old."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything; equal recipes and seeds give equal zoos."""

    name: str
    train: int = 1500
    val: int = 600
    test: int = 300
    clean: int = 1000
    """Clean scenes to pre-train on."""
    pretrain_steps: int = 500
    expert_steps: int = 500
    batch: int = 32
    pretrain_lr: float = 4e-3
    expert_lr: float = 1e-3


RECIPES = {
    "nyuv2-mini_3": Recipe("nyuv2-mini_3"),
    "nyuv2-micro_3": Recipe(
        "nyuv2-micro_3", 40, 24, 12, clean=100, pretrain_steps=4, expert_steps=6, batch=8
    ),
}


def build(seed: int = 0, recipe: str = "nyuv2-mini_3", progress: bool = True) -> Path:
    """The folder of a zoo, built first where it is not cached yet.

    It holds the scenes, `nyuv2/{train,val,test}`, and the models: `pretrained` and a folder for each task.

    Raises:
        ValueError: an unknown recipe.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    made = RECIPES[recipe]
    digest = zlib.crc32(repr(made).encode())
    name = f"{recipe}-v{VERSION}-{digest:08x}-seed{seed}"
    return built_once(name, lambda folder: _build(folder, made, seed, progress))


def load_dataset(
    split: str, target: str | None = None, seed: int = 0, recipe: str = "nyuv2-mini_3"
) -> Scenes:
    """One split of a zoo's scenes: `train` (the experts' own), `val` (to adapt on) or `test`."""
    return Scenes(build(seed, recipe) / "nyuv2", split, target)


def _build(folder: Path, recipe: Recipe, seed: int, progress: bool) -> None:
    total = recipe.pretrain_steps + len(FOLDER) * recipe.expert_steps
    about = f"Building {recipe.name} (once, about two minutes)"
    with tqdm(total=total, desc=about, unit="step", disable=not progress) as bar, reproducible(seed):
        for place, split in enumerate(("train", "val", "test")):
            if not (folder / "nyuv2" / split).exists():
                rng = np.random.default_rng([seed, place])
                scenes.write(folder / "nyuv2" / split, getattr(recipe, split), rng)
        if not (folder / "pretrained").exists():
            _pretrain(folder, recipe, seed, bar)
        for task in FOLDER:
            if not (folder / task).exists():
                _finetune(folder, recipe, task, seed, bar)


def _pretrain(folder: Path, recipe: Recipe, seed: int, bar: tqdm) -> None:
    """Learn all three tasks at once on clean pictures of other scenes, with decoders that are not kept."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 3])
    chunks = [scenes.render(scenes.CHUNK, rng, clean=True) for _ in range(-(-recipe.clean // scenes.CHUNK))]
    images, *targets = (as_seen(np.concatenate(kind)) for kind in zip(*chunks, strict=True))
    encoder = TinyDilatedResNet()
    heads = nn.ModuleList(DenseHead(decoder(task), scenes.SIZE) for task in FOLDER)

    def loss(rows: Tensor) -> Tensor:
        features = encoder(images[rows])
        each = zip(FOLDER, heads, targets, strict=True)
        return sum(loss_fn[task](head(features), target[rows]) for task, head, target in each)

    model = nn.ModuleList([encoder, heads])
    _train(model, loss, len(images), recipe.pretrain_steps, recipe.pretrain_lr, recipe, seed, bar)
    _save(folder / "pretrained", {"encoder": encoder})


def _finetune(folder: Path, recipe: Recipe, task: str, seed: int, bar: tqdm) -> None:
    """Train every weight of an encoder, from the pre-trained one, with a decoder of the task's own."""
    torch.manual_seed(zlib.crc32(f"{seed} {task}".encode()))
    encoder, head = TinyDilatedResNet(), DenseHead(decoder(task), scenes.SIZE)
    tensors, _ = read_tensors(folder / "pretrained" / MODEL_FILE)
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in tensors.items()})
    images, targets = _arrays(folder, task)
    model = nn.Sequential(encoder, head)

    def loss(rows: Tensor) -> Tensor:
        return loss_fn[task](model(images[rows]), targets[rows])

    _train(model, loss, len(images), recipe.expert_steps, recipe.expert_lr, recipe, seed, bar)
    _save(folder / task, {"encoder": encoder, f"decoders.{task}": nn.Sequential(*head.trunk, head.last)})


def _train(model, loss, count: int, steps: int, lr: float, recipe: Recipe, seed: int, bar: tqdm) -> None:
    """Adam with one cycle of the learning rate; `loss` takes the rows of a batch."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.2)
    rng = np.random.default_rng([seed, steps])
    model.train()

    def of_a_batch() -> Tensor:
        return loss(torch.from_numpy(rng.choice(count, recipe.batch, replace=False)))

    fit(of_a_batch, optimiser, schedule, steps, bar.update)
    model.eval()


def _arrays(folder: Path, task: str) -> list[Tensor]:
    data = Scenes(folder / "nyuv2", "train", task)
    return default_collate([data[i] for i in range(len(data))])


def _save(folder: Path, parts: dict[str, nn.Module]) -> None:
    tensors = {f"{part}.{n}": t for part, module in parts.items() for n, t in module.state_dict().items()}
    write_tensors(folder / MODEL_FILE, tensors, {"format": "pt"})
