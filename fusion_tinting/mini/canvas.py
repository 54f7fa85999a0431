"""Drawing for many small images at once: every function works on a whole batch of float arrays.

Images are ``(N, SIZE, SIZE, 3)`` float32 in 0..255, masks ``(N, SIZE, SIZE)`` in 0..1, and coordinates
``(N, SIZE, SIZE)`` in an object's own frame, where the object fills -1..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 32
"""Height and width of every image, in pixels."""


@dataclass(frozen=True)
class Style:
    """How freely a picture is taken: the difference between pre-training and task images."""

    scale: tuple[float, float]
    """Smallest and largest size of the object, relative to the image."""
    turn: float
    """Largest rotation, in radians."""
    shift: float
    """Largest displacement, in half image widths."""
    clutter: float
    """Strength of the uneven background, in grey levels."""
    camera: bool
    """Whether the shared low-contrast camera takes the picture."""


WEB = Style(scale=(0.82, 1.0), turn=0.08, shift=0.06, clutter=7.0, camera=False)
"""Clean pictures, as on the web: what the model is pre-trained on."""

FIELD = Style(scale=(0.78, 0.95), turn=0.15, shift=0.1, clutter=11.0, camera=True)
"""The tasks' own pictures. They all share the camera: what the experts learn alike is mostly that, so
that their task vectors share a direction and merging them helps each."""


def uniform(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """One number an image, shaped ``(N, 1, 1)`` to combine with masks and coordinates."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def colours(rng: np.random.Generator, n: int, low=(0, 0, 0), high=(255, 255, 255)) -> np.ndarray:
    """Random colours ``(N, 3)`` between two corners of the colour cube."""
    return rng.uniform(low, high, (n, 3)).astype(np.float32)


def contrasting(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A light and a dark colour ``(N, 3)`` an image, both tinged at random."""
    light = rng.uniform(170, 235, (n, 1)) + rng.normal(0, 18, (n, 3))
    dark = rng.uniform(20, 85, (n, 1)) + rng.normal(0, 18, (n, 3))
    return np.clip(light, 0, 255).astype(np.float32), np.clip(dark, 0, 255).astype(np.float32)


def frame(rng: np.random.Generator, n: int, style: Style, turn: float | None = None):
    """Pixel coordinates ``x, y`` in the frame of an object placed as `style` allows."""
    turn = style.turn if turn is None else turn
    line = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    column, row = np.meshgrid(line, line)
    scale = uniform(rng, n, *style.scale)
    angle = uniform(rng, n, -turn, turn)
    column = (column - uniform(rng, n, -style.shift, style.shift)) / scale
    row = (row - uniform(rng, n, -style.shift, style.shift)) / scale
    return (
        np.cos(angle) * column + np.sin(angle) * row,
        np.cos(angle) * row - np.sin(angle) * column,
    )


def inside(distance: np.ndarray, softness: float = 0.09) -> np.ndarray:
    """Mask of a shape from a signed distance that is negative inside, with an antialiased edge."""
    return np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)


def box(x, y, half_width, half_height) -> np.ndarray:
    """Mask of a rectangle around the origin."""
    return inside(np.maximum(np.abs(x) - half_width, np.abs(y) - half_height))


def disc(x, y, radius) -> np.ndarray:
    """Mask of a disc around the origin."""
    return inside(np.hypot(x, y) - radius)


def paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """`image` with one colour ``(N, 3)`` or ``(3,)`` laid over it where `mask` says."""
    colour = np.broadcast_to(np.asarray(colour, np.float32), (len(image), 3))
    return image + mask[..., None] * (colour[:, None, None, :] - image)


def blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Image that is `first` where `share` ``(N, SIZE, SIZE)`` is 0 and `second` where it is 1."""
    return first[:, None, None, :] + share[..., None] * (second - first)[:, None, None, :]


def clouds(rng: np.random.Generator, n: int, cells: int) -> np.ndarray:
    """Smooth noise ``(N, SIZE, SIZE)`` of mean 0 with about `cells` bumps across the image."""
    coarse = rng.standard_normal((n, cells + 1, cells + 1)).astype(np.float32)
    place = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = np.meshgrid(place, place)
    shape = (n, SIZE, SIZE)
    return sample(coarse, np.broadcast_to(x, shape), np.broadcast_to(y, shape), outside="edge")


def backdrop(rng: np.random.Generator, colour: np.ndarray, style: Style) -> np.ndarray:
    """A background of one colour ``(N, 3)`` with as much unevenness as the style has clutter."""
    n = len(colour)
    unevenness = clouds(rng, n, 5)[..., None] * style.clutter
    return np.repeat(colour[:, None, None, :], SIZE, 1).repeat(SIZE, 2) + unevenness


def sample(pictures: np.ndarray, x: np.ndarray, y: np.ndarray, outside: str = "constant") -> np.ndarray:
    """Read pictures ``(N, H, W)`` at coordinates in -1..1, bilinearly.

    `outside` says what lies beyond them, in the words of `numpy.pad`: ``constant`` is 0.
    """
    n, height, width = pictures.shape
    column = np.clip((x + 1) / 2 * (width - 1), -1, width)
    row = np.clip((y + 1) / 2 * (height - 1), -1, height)
    padded = np.pad(pictures, ((0, 0), (2, 2), (2, 2)), mode=outside)
    left, top = np.floor(column).astype(np.int32), np.floor(row).astype(np.int32)
    right_share, low_share = column - left, row - top
    image = np.arange(n)[:, None, None]
    left, top = left + 2, top + 2
    upper = padded[image, top, left] * (1 - right_share) + padded[image, top, left + 1] * right_share
    lower = padded[image, top + 1, left] * (1 - right_share)
    lower = lower + padded[image, top + 1, left + 1] * right_share
    return (upper * (1 - low_share) + lower * low_share).astype(np.float32)


def finish(rng: np.random.Generator, images: np.ndarray, style: Style) -> np.ndarray:
    """Take the picture, as bytes ``(N, SIZE, SIZE, 3)`` uint8."""
    if style.camera:
        cast = rng.normal(0, 4, (len(images), 1, 1, 3))
        images = (images - 128) * 0.26 + 128 + cast + rng.normal(0, 2.5, images.shape)
    return np.clip(images + 0.5, 0, 255).astype(np.uint8)
