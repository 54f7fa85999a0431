"""The tasks' images as `datasets.Dataset` folders."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fusion_tinting.errors import unknown

from .canvas import FIELD
from .recipe import Recipe
from .task import SPLITS, Task


def write(recipe: Recipe, task: Task, folder: Path, seed: int) -> None:
    """Render a task and save its splits as ``folder/<split>``."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(task.classnames))})
    for split in SPLITS:
        images, labels = task.render(getattr(recipe, split), split, FIELD, seed)
        encoded = [{"bytes": _png(image), "path": None} for image in images]
        columns = {"image": encoded, "label": labels.tolist()}
        Dataset.from_dict(columns, features=features).save_to_disk(folder / split)


def read(zoo: Path, task: str, split: str):
    """One split of a task, as the `datasets.Dataset` that was saved."""
    from datasets import load_from_disk

    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return load_from_disk(str(zoo / "data" / task / split))


def read_arrays(zoo: Path, task: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """One split as images ``(N, SIZE, SIZE, 3)`` uint8 and labels ``(N,)``."""
    dataset = read(zoo, task, split).with_format(None)
    return np.stack([np.asarray(image) for image in dataset["image"]]), np.asarray(dataset["label"])


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
