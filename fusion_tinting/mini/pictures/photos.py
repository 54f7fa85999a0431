"""Photographs that scikit-image and scikit-learn carry in their wheels, and where to crop them.

Each photograph is cut into square cells. A cell belongs to one split, and a crop lies inside one
cell, so that no two splits ever share a pixel.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from fusion_tinting.mini.pictures.canvas import SIZE, Array, Rng

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""

CELL = 56
"""Side of a cell, in pixels of the photograph."""

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "retina": "retina.jpg",
    "tissue": "ihc.png",
    "galaxies": "hubble_deep_field.jpg",
    "coins": "coins.png",
    "moon": "moon.png",
    "page": "page.png",
    "flower": "flower.jpg",
    "temple": "china.jpg",
}
"""Class name of the photographs task -> file."""

MATERIALS = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
"""Class name of the textures task -> file."""

SPLIT_OF_CELL = ("train", "val", "train", "test", "train")
"""Cells in reading order along a diagonal pattern belong to these splits in turn."""


def photograph_path(file: str) -> Path:
    """Return where the wheel has put a photograph; nothing is ever fetched.

    Raises:
        FileNotFoundError: It is in neither wheel.
    """
    import skimage
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets/images")
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(
        f"The mini benchmark needs the photograph {file}, which the wheels of scikit-image and "
        f"scikit-learn carry. Found it in neither {folders[0]} nor {folders[1]}: reinstall them."
    )


@cache
def photograph(file: str) -> Image.Image:
    """Return the photograph in RGB, no side longer than 720 pixels."""
    image = Image.open(photograph_path(file)).convert("RGB")
    image.thumbnail((720, 720), Image.Resampling.BOX)
    return image


def regions(file: str, split: str) -> list[Box]:
    """Return the split's cells of a photograph.

    Splits take turns along the rows, and each row starts two places further on, so that every split
    sees every part of the photograph.
    """
    width, height = photograph(file).size
    return [
        (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
        for row in range(height // CELL)
        for column in range(width // CELL)
        if SPLIT_OF_CELL[(column + 2 * row) % len(SPLIT_OF_CELL)] == split
    ]


def choose_square(rng: Rng, file: str, split: str, sides: tuple[int, int]) -> Box:
    """Return a random square inside one of the split's regions."""
    boxes = regions(file, split)
    left, top, right, bottom = boxes[rng.integers(len(boxes))]
    side = int(rng.integers(sides[0], sides[1] + 1))
    left += int(rng.integers(right - left - side + 1))
    top += int(rng.integers(bottom - top - side + 1))
    return left, top, left + side, top + side


def crop(rng: Rng, file: str, split: str, sides: tuple[int, int]) -> Array:
    """Return a random square of the split's regions, shrunk to `(SIZE, SIZE, 3)`; maybe mirrored."""
    # The liveliest of three: large parts of some photographs are plain sky.
    squares = [_cut_out(file, choose_square(rng, file, split, sides)) for _ in range(3)]
    patch = max(squares, key=np.std)
    return patch[:, ::-1] if rng.random() < 0.5 else patch


def _cut_out(file: str, box: Box) -> Array:
    # Cut, then shrink: shrinking a box in place would read a few pixels beyond it.
    square = photograph(file).crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(square, np.float32)


def crops(rng: Rng, n: int, file: str, split: str, sides: tuple[int, int] = (28, CELL)) -> Array:
    """Return `n` crops, `(N, SIZE, SIZE, 3)` in 0..255."""
    return np.stack([crop(rng, file, split, sides) for _ in range(n)])
