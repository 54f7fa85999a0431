"""What the zoos of pictures share: rendered data sets, images for pre-training, pixels for a model."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fusion_tinting.mini.pictures.canvas import FIELD, WEB
from fusion_tinting.mini.pictures.tasks import TASKS
from fusion_tinting.mini.recipe import Recipe
from fusion_tinting.mini.training import Advance, Training, fit

PIXEL_MEAN, PIXEL_STD = (0.5,) * 3, (0.25,) * 3

IMAGE_PROCESSOR = {
    "do_resize": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": PIXEL_MEAN,
    "image_std": PIXEL_STD,
}
"""Of a `preprocessor_config.json` that does what `pixel_values` does. It is written by hand: it is then the
same whether transformers would choose its torchvision or its PIL image processor."""


@dataclass(frozen=True, kw_only=True)
class PictureRecipe(Recipe):
    """A benchmark of classifiers of `(SIZE, SIZE, 3)` pictures.

    Args:
        width: Channels of the model.
        layers: Its blocks.
        web_images: Clean images of each task for pre-training.
        field_images: Images of each task for pre-training that its own camera took; more of them make the
            tasks easier.
        pretrain_batch: Images in a batch of pre-training.
        expert_batch: Images in a batch of fine-tuning.
    """

    train: int = 4500
    val: int = 2500
    test: int = 1000
    width: int = 128
    layers: int = 4
    web_images: int = 2000
    field_images: int = 6
    pretrain_steps: int = 1200
    pretrain_batch: int = 64
    pretrain_lr: float = 2e-3
    expert_steps: int = 400
    expert_batch: int = 32
    expert_lr: float = 5e-4
    version: ClassVar[int] = 4

    def make_dataset(self, task: str, split: str, seed: int) -> Any:
        """Return a `datasets.Dataset` with features `image` and `label`: one split of a task."""
        from datasets import ClassLabel, Dataset, Features  # take seconds to import
        from datasets import Image as ImageFeature

        names = list(TASKS[task].classnames)
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
        images, labels = TASKS[task].render(getattr(self, split), split, FIELD, seed)
        encoded = [{"bytes": _png(image), "path": None} for image in images]
        return Dataset.from_dict({"image": encoded, "label": labels.tolist()}, features=features)

    def load_arrays(self, zoo: Path, task: str, split: str) -> tuple[np.ndarray, Tensor]:
        """Return one split as images `(N, SIZE, SIZE, 3)` uint8 and labels `(N,)`."""
        dataset = self.load_dataset(zoo, task, split).with_format(None)
        images = np.stack([np.asarray(image) for image in dataset["image"]])
        return images, torch.from_numpy(np.asarray(dataset["label"]))

    def pretraining_images(self, seed: int) -> tuple[np.ndarray, Tensor]:
        """Return web pictures of all tasks, a few of the tasks' own, and the class of each.

        Classes are numbered over all tasks. Only the train split's photographs, fonts and handwriting are
        used.
        """
        images, labels, first = [], [], 0
        for name in self.tasks:
            for style, count in ((WEB, self.web_images), (FIELD, self.field_images)):
                # Another seed than the tasks' data, so that no training image is seen here already.
                pictures, classes = TASKS[name].render(count, "train", style, seed + 1_000_003)
                images.append(pictures)
                labels.append(classes + first)
            first += len(TASKS[name].classnames)
        return np.concatenate(images), torch.from_numpy(np.concatenate(labels))


def pixel_values(
    images: np.ndarray,
    mean: tuple[float, ...] = PIXEL_MEAN,
    std: tuple[float, ...] = PIXEL_STD,
) -> Tensor:
    """Return images as a model's processor would give them, `(N, 3, SIZE, SIZE)`.

    Args:
        images: `(N, SIZE, SIZE, 3)` uint8.
        mean: Of each channel, subtracted.
        std: Of each channel, divided by.
    """
    scaled = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    return (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def fit_classifier(
    logits: Callable[[np.ndarray], Tensor],
    parameters: Iterable[nn.Parameter],
    data: tuple[np.ndarray, Tensor],
    batches: Iterator[Tensor] | Iterator[np.ndarray],
    training: Training,
    advance: Advance,
) -> None:
    """Minimize the cross-entropy of pictures.

    Args:
        logits: Pictures `(B, SIZE, SIZE, 3)` uint8 -> logits `(B, classes)`.
        parameters: What is trained.
        data: Pictures `(N, SIZE, SIZE, 3)` uint8 and their classes `(N,)`.
        batches: Indices of the pictures of each step, `(B,)`.
        training: Settings.
        advance: Called after every step.
    """
    images, labels = data

    def loss() -> Tensor:
        batch = next(batches)
        return nn.functional.cross_entropy(logits(images[batch]), labels[batch])

    fit(loss, parameters, training, advance)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
