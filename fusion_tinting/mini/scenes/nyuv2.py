"""`nyuv2-mini_3`: scenes, an encoder pre-trained on what they hold, and NYUv2's three experts."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from fusion_bench.metrics.nyuv2.loss import loss_fn
from torch import Tensor, nn
from torch.utils.data import default_collate

from fusion_tinting.families.dense import MODEL_FILE, DenseHead
from fusion_tinting.families.nyuv2_scenes import FOLDER, Scenes, as_seen
from fusion_tinting.mini.recipe import SPLITS, Build, Part, Recipe
from fusion_tinting.mini.scenes import render
from fusion_tinting.mini.scenes.tiny_dense import TinyDilatedResNet, decoder
from fusion_tinting.mini.training import Advance, Training, drawn_batches, fit
from fusion_tinting.run.files import read_tensors, write_tensors


@dataclass(frozen=True, kw_only=True)
class SceneRecipe(Recipe):
    """Rooms with classes, depth and normals: an encoder, and for each task an encoder with a decoder.

    Args:
        clean: Clean scenes to pre-train on.
        batch: Scenes in a batch.
    """

    tasks: tuple[str, ...] = tuple(FOLDER)
    train: int = 1500
    val: int = 600
    test: int = 300
    clean: int = 1000
    pretrain_steps: int = 500
    expert_steps: int = 500
    batch: int = 32
    pretrain_lr: float = 4e-3
    expert_lr: float = 1e-3
    minutes: str = "about two minutes"
    version: ClassVar[int] = 2

    def data(self) -> list[Part]:
        """Return the parts that are data sets: one for each split, for the tasks share the images."""
        return [Part(f"data/{split}", 1, partial(self._save_split, split)) for split in SPLITS]

    def _save_split(self, split: str, build: Build, folder: Path, advance: Advance) -> None:
        rng = np.random.default_rng([build.seed, SPLITS.index(split)])
        render.write(folder, getattr(self, split), rng)
        advance(1)

    def load_dataset(self, zoo: Path, task: str, split: str) -> Scenes:
        """Return one split of the scenes, with the targets of a task."""
        return Scenes(zoo / "data", split, task)

    def pretrain(self, build: Build, folder: Path, advance: Advance) -> None:
        """Learn all tasks at once on clean pictures of other scenes, with decoders that are not kept."""
        torch.manual_seed(build.seed)
        images, targets = self._clean_scenes(np.random.default_rng([build.seed, 3]))
        encoder = TinyDilatedResNet()
        heads = nn.ModuleList(DenseHead(decoder(task), render.SIZE) for task in self.tasks)
        batches = drawn_batches(len(images), self.batch, [build.seed, self.pretrain_steps])

        def loss() -> Tensor:
            rows = next(batches)
            features = encoder(images[rows])
            each = zip(self.tasks, heads, targets, strict=True)
            return sum(loss_fn[task](head(features), target[rows]) for task, head, target in each)

        model = nn.ModuleList([encoder, heads])
        _train(model, loss, self.pretrain_steps, self.pretrain_lr, advance)
        _save(folder, {"encoder": encoder})

    def finetune(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Train every weight of an encoder, from the pre-trained one, with a decoder of the task's own."""
        torch.manual_seed(zlib.crc32(f"{build.seed} {task}".encode()))
        encoder, head = TinyDilatedResNet(), DenseHead(decoder(task), render.SIZE)
        tensors, _ = read_tensors(build.zoo / "pretrained" / MODEL_FILE)
        encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in tensors.items()})
        images, targets = default_collate(list(self.load_dataset(build.zoo, task, "train")))
        model = nn.Sequential(encoder, head)
        batches = drawn_batches(len(images), self.batch, [build.seed, self.expert_steps])

        def loss() -> Tensor:
            rows = next(batches)
            return loss_fn[task](model(images[rows]), targets[rows])

        _train(model, loss, self.expert_steps, self.expert_lr, advance)
        _save(folder, {"encoder": encoder, f"decoders.{task}": nn.Sequential(*head.trunk, head.last)})

    def _clean_scenes(self, rng: np.random.Generator) -> tuple[Tensor, list[Tensor]]:
        """Return images and, for each task, their targets."""
        count = -(-self.clean // render.CHUNK)
        chunks = [render.render(render.CHUNK, rng, clean=True) for _ in range(count)]
        images, *targets = (as_seen(np.concatenate(kind)) for kind in zip(*chunks, strict=True))
        return images, targets


def _train(model: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float, advance: Advance) -> None:
    model.train()
    fit(loss, model.parameters(), Training(steps, lr, warmup=0.2, fused=True), advance)
    model.eval()


def _save(folder: Path, modules: dict[str, nn.Module]) -> None:
    tensors = {f"{part}.{n}": t for part, module in modules.items() for n, t in module.state_dict().items()}
    write_tensors(folder / MODEL_FILE, tensors, {"format": "pt"})


RECIPES = {
    "nyuv2-mini_3": SceneRecipe(name="nyuv2-mini_3"),
    "nyuv2-micro_3": SceneRecipe(
        name="nyuv2-micro_3", train=40, val=24, test=12, clean=100, pretrain_steps=4, expert_steps=6,
        batch=8, minutes="a few seconds", workers=0,
    ),
}  # fmt: skip
"""Name -> recipe: the benchmark, and a far smaller one of the same kind for tests."""
