"""Preprocessed NYUv2 in files: images, and the targets of one task."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion_tinting.errors import unknown

FOLDER = {"segmentation": "label", "depth": "depth", "normal": "normal"}
"""Where a split's targets are."""


class Scenes(Dataset):
    """A split of preprocessed NYUv2, `<root>/<split>/{image,label,depth,normal}/<i>.npy`.

    An item is the image (3, H, W), and with `target` a pair of it and the target: classes (H, W), of which
    a negative one is no class; depth (1, H, W) or normals (3, H, W), invalid where all zero.

    Args:
        split: `train`, or `val`, which is what results are reported on.
        target: the task whose targets are read; None reads no file of them.

    Raises:
        ValueError: no images there, or not as many targets.
    """

    def __init__(self, root: str, split: str = "train", target: str | None = None):
        if target is not None and target not in FOLDER:
            raise unknown("target", target, FOLDER)
        self.folder, self.target = Path(root).expanduser() / split, target
        self.count = len(list((self.folder / "image").glob("*.npy")))
        if self.count == 0:
            raise ValueError(f"Found no images `{self.folder / 'image'}/<number>.npy`. Set `data_dir`.")
        if target is not None:
            targets = len(list((self.folder / FOLDER[target]).glob("*.npy")))
            if targets != self.count:
                raise ValueError(
                    f"`{self.folder / FOLDER[target]}` holds {targets} targets of `{target}` for "
                    f"{self.count} images. Each image must have one."
                )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        if index >= self.count:
            raise IndexError(index)  # what ends a loop over it
        image = self._read("image", index)
        return image if self.target is None else (image, self._read(FOLDER[self.target], index))

    def _read(self, kind: str, index: int) -> Tensor:
        return as_seen(np.load(self.folder / kind / f"{index}.npy")[None])[0]


def as_seen(values: np.ndarray) -> Tensor:
    """Float32, with the channels of (N, H, W, C) in front of the pixels."""
    return torch.from_numpy(np.moveaxis(values, -1, 1) if values.ndim == 4 else values).float()
