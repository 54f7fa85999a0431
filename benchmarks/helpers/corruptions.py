"""The seven corruptions that FusionBench's robustness configurations name, for small images.

They are written anew, because FusionBench's own need ImageMagick and OpenCV. The numbers are those of the
strongest of the five levels of CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261). Each function takes
an image (H, W, 3) in 0..1.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.util import random_noise

from fusion_tinting.method.schedule import stable_seed

MUD = np.array([63, 42, 20]) / 255


def motion_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Average over a path of 9 pixels, within 45 degrees of the horizontal, by a Gaussian of 2.5."""
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    path = np.arange(10)
    weights = np.exp(-(path**2) / (2 * 2.5**2))
    moved = [
        ndimage.shift(image, (step * np.sin(angle), step * np.cos(angle), 0), order=1, mode="nearest")
        for step in path
    ]
    return np.average(moved, axis=0, weights=weights)


def impulse_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Set 7 % of the values to black or white."""
    return random_noise(image, mode="s&p", amount=0.07, rng=rng)


def gaussian_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise of standard deviation 0.1."""
    return image + rng.normal(scale=0.1, size=image.shape)


def pixelate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep 0.65 of the pixels in either direction."""
    small = _picture(image)
    small = small.resize([round(0.65 * side) for side in small.size], Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BOX)) / 255


def spatter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put mud where blurred noise is high."""
    noise = ndimage.gaussian_filter(rng.normal(0.65, 0.1, image.shape[:2]), 0.5)
    mud = ndimage.gaussian_filter((noise > 0.68).astype(float), 0.6)
    mud = np.where(mud < 0.8, 0, mud)[..., None]
    return image * (1 - mud) + MUD * mud


def contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep 0.15 of the contrast."""
    mean = image.mean((0, 1))
    return mean + 0.15 * (image - mean)


def jpeg_compression(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress with quality 40 of 100."""
    file = io.BytesIO()
    _picture(image).save(file, "jpeg", quality=40)
    return np.asarray(Image.open(file)) / 255


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    function.__name__: function
    for function in (
        motion_blur, impulse_noise, gaussian_noise, pixelate, spatter, contrast, jpeg_compression,
    )
}  # fmt: skip
"""Name -> function of an image (H, W, 3) in 0..1 and a generator to the corrupted image."""


class Corrupted:
    """A data set of images and labels with every image corrupted, the same way whenever it is read."""

    def __init__(self, dataset: Sequence[dict], corruption: str) -> None:
        self.dataset, self.corruption = dataset, corruption

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        rng = np.random.default_rng(stable_seed(self.corruption, index))
        image = np.asarray(row["image"].convert("RGB")) / 255
        return {**row, "image": _picture(CORRUPTIONS[self.corruption](image, rng))}


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8))
