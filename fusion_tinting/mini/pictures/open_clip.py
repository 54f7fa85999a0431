"""`openclip-mini_3`: a tiny OpenCLIP tower, in files like released checkpoints once they are converted.

`pretrained/` holds the tower, `zeroshot.safetensors`, and the heads, `head_<task>.safetensors`; the folder
of a task holds its expert, `finetuned.safetensors`.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from fusion_tinting.families.open_clip import Architecture, ClassificationHead, VisualEncoder
from fusion_tinting.families.open_clip_files import load_encoder, load_head
from fusion_tinting.mini.pictures.canvas import SIZE
from fusion_tinting.mini.pictures.recipe import PictureRecipe, fit_classifier, pixel_values
from fusion_tinting.mini.pictures.tasks import TASKS
from fusion_tinting.mini.recipe import Build
from fusion_tinting.mini.training import Advance, Training, drawn_batches

EMBEDDING = 64
SCALE = 18.0
"""About the norm of a class's weights, into which the released heads have the logit scale multiplied."""


@dataclass(frozen=True, kw_only=True)
class OpenClipRecipe(PictureRecipe):
    """A tower and heads; an expert is the tower fine-tuned with the task's head as it is."""

    def pretrain(self, build: Build, folder: Path, advance: Advance) -> None:
        """Train a tower to tell all classes of all tasks apart; a task's head is its part of the whole.

        That is CLIP's loss with an embedding learned for every class in place of a text tower.
        """
        torch.manual_seed(build.seed)
        encoder = _make_encoder(self.width, self.layers)
        data = self.pretraining_images(build.seed)
        counts = [len(TASKS[task].classnames) for task in self.tasks]
        weight = torch.randn(sum(counts), EMBEDDING) * SCALE * EMBEDDING**-0.5
        head = ClassificationHead(weight, None, normalize=True)
        batches = drawn_batches(len(data[1]), self.pretrain_batch, [build.seed, 1])
        _train(encoder, head, data, batches, _training(self.pretrain_steps, self.pretrain_lr), advance)
        encoder.save(folder / "zeroshot.safetensors")
        weights, biases = (tensor.detach().split(counts) for tensor in (head.weight, head.bias))
        for task, weight, bias in zip(self.tasks, weights, biases, strict=True):
            ClassificationHead(weight, bias, normalize=True).save(folder / f"head_{task}.safetensors")

    def finetune(self, task: str, build: Build, folder: Path, advance: Advance) -> None:
        """Fine-tune the whole tower on one task."""
        base = build.zoo / "pretrained"
        encoder = load_encoder(base / "zeroshot.safetensors", None).requires_grad_(True)
        head = load_head(base / f"head_{task}.safetensors").requires_grad_(False)
        data = self.load_arrays(build.zoo, task, "train")
        batches = drawn_batches(len(data[1]), self.expert_batch, [build.seed, 2, zlib.crc32(task.encode())])
        _train(encoder, head, data, batches, _training(self.expert_steps, self.expert_lr), advance)
        encoder.save(folder / "finetuned.safetensors")


def _make_encoder(width: int, layers: int) -> VisualEncoder:
    vision = {"image_size": SIZE, "patch_size": 8, "width": width, "layers": layers}
    architecture = Architecture("ViT-mini", EMBEDDING, {**vision, "head_width": 32, "mlp_ratio": 2.0})
    tower = architecture.build("cpu")
    return VisualEncoder(architecture, {f"model.visual.{n}": t for n, t in tower.state_dict().items()})


def _training(steps: int, lr: float) -> Training:
    return Training(steps, lr, weight_decay=0.05, warmup=0.15, clip=1.0, fused=True)


def _train(
    encoder: VisualEncoder,
    head: ClassificationHead,
    data: tuple[np.ndarray, Tensor],
    batches: Iterator[np.ndarray],
    training: Training,
    advance: Advance,
) -> None:
    """Minimize the cross-entropy over every parameter that is not frozen."""
    parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]

    def logits(images: np.ndarray) -> Tensor:
        # As the encoder's own preprocessing gives them.
        return head(encoder(pixel_values(images, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)))

    encoder.train()
    fit_classifier(logits, parameters, data, batches, training, advance)
    encoder.eval()


RECIPES = {
    "openclip-mini_3": OpenClipRecipe(
        name="openclip-mini_3",
        tasks=("mini-clocks", "mini-shapes", "mini-cards"),
        pretrain_steps=400,
        minutes="about two minutes",
    )
}
"""Name -> recipe."""
