"""Drawing for many small images at once: every function works on a whole batch of float arrays.

Images are `(N, SIZE, SIZE, 3)` float32 in 0..255, masks `(N, SIZE, SIZE)` in 0..1, and coordinates
`(N, SIZE, SIZE)` in an object's own frame, where the object fills -1..1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Rng = np.random.Generator
Color = Sequence[float]
"""Red, green and blue, 0 to 255."""

SIZE = 32
"""Height and width of every image, in pixels."""


@dataclass(frozen=True)
class Style:
    """How freely a picture is taken: the difference between pre-training and task images.

    Args:
        scale: Smallest and largest size of the object, relative to the image.
        turn: Largest rotation, in radians.
        shift: Largest displacement, in half image widths.
        clutter: Strength of the uneven background, in gray levels.
        camera: Whether the shared low-contrast camera takes the picture.
    """

    scale: tuple[float, float]
    turn: float
    shift: float
    clutter: float
    camera: bool


WEB = Style(scale=(0.82, 1.0), turn=0.08, shift=0.06, clutter=7.0, camera=False)
"""Clean pictures, as on the web: what the model is pre-trained on."""

FIELD = Style(scale=(0.78, 0.95), turn=0.15, shift=0.1, clutter=11.0, camera=True)
"""The tasks' own pictures. They all share the camera: what the experts learn alike is mostly that, so
that their task vectors share a direction and merging them helps each."""


def uniform(rng: Rng, n: int, low: float, high: float) -> Array:
    """Return one number an image, shaped `(N, 1, 1)` to combine with masks and coordinates."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def colors(rng: Rng, n: int, low: Color = (0, 0, 0), high: Color = (255, 255, 255)) -> Array:
    """Return random colors `(N, 3)` between two corners of the color cube."""
    return rng.uniform(low, high, (n, 3)).astype(np.float32)


def contrasting(rng: Rng, n: int) -> tuple[Array, Array]:
    """Return a light and a dark color `(N, 3)` an image, both tinged at random."""
    light = rng.uniform(170, 235, (n, 1)) + rng.normal(0, 18, (n, 3))
    dark = rng.uniform(20, 85, (n, 1)) + rng.normal(0, 18, (n, 3))
    return np.clip(light, 0, 255).astype(np.float32), np.clip(dark, 0, 255).astype(np.float32)


def frame(rng: Rng, n: int, style: Style, turn: float | None = None) -> tuple[Array, Array]:
    """Return pixel coordinates `x, y` in the frame of an object placed as `style` allows."""
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


def inside(distance: Array, softness: float = 0.09) -> Array:
    """Return a mask, with an antialiased edge, from a signed distance that is negative inside."""
    return np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)


def box(x: Array, y: Array, half_width: Array | float, half_height: Array | float) -> Array:
    """Return the mask of a rectangle around the origin."""
    return inside(np.maximum(np.abs(x) - half_width, np.abs(y) - half_height))


def disc(x: Array, y: Array, radius: Array | float) -> Array:
    """Return the mask of a disc around the origin."""
    return inside(np.hypot(x, y) - radius)


def paint(image: Array, mask: Array, color: Array | Color) -> Array:
    """Return `image` with one color `(N, 3)` or `(3,)` laid over it where `mask` is 1."""
    color = np.broadcast_to(np.asarray(color, np.float32), (len(image), 3))
    return image + mask[..., None] * (color[:, None, None, :] - image)


def blend(first: Array, second: Array, share: Array) -> Array:
    """Return an image that is `first` where `share` `(N, SIZE, SIZE)` is 0 and `second` where it is 1."""
    return first[:, None, None, :] + share[..., None] * (second - first)[:, None, None, :]


def clouds(rng: Rng, n: int, cells: int) -> Array:
    """Return smooth noise `(N, SIZE, SIZE)` of mean 0 with about `cells` bumps across the image."""
    coarse = rng.standard_normal((n, cells + 1, cells + 1)).astype(np.float32)
    place = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = np.meshgrid(place, place)
    shape = (n, SIZE, SIZE)
    return sample(coarse, np.broadcast_to(x, shape), np.broadcast_to(y, shape), outside="edge")


def backdrop(rng: Rng, color: Array, style: Style) -> Array:
    """Return a background of one color `(N, 3)` with as much unevenness as the style has clutter."""
    n = len(color)
    unevenness = clouds(rng, n, 5)[..., None] * style.clutter
    return np.repeat(color[:, None, None, :], SIZE, 1).repeat(SIZE, 2) + unevenness


def sample(pictures: Array, x: Array, y: Array, outside: str = "constant") -> Array:
    """Read pictures at coordinates in -1..1, bilinearly.

    Args:
        pictures: `(N, H, W)`.
        x: Across, `(N, SIZE, SIZE)`.
        y: Down, `(N, SIZE, SIZE)`.
        outside: What lies beyond them, a mode of `numpy.pad`: `constant` is 0.
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


def finish(rng: Rng, images: Array, style: Style) -> Array:
    """Take the pictures, as bytes `(N, SIZE, SIZE, 3)` uint8."""
    if style.camera:
        cast = rng.normal(0, 4, (len(images), 1, 1, 3))
        images = (images - 128) * 0.26 + 128 + cast + rng.normal(0, 2.5, images.shape)
    return np.clip(images + 0.5, 0, 255).astype(np.uint8)
