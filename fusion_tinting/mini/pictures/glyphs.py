"""Characters: the fonts that matplotlib ships, and scikit-learn's handwritten digits."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusion_tinting.mini.pictures.canvas import Array, Rng

GLYPH_SIZE = 36

FONTS = {
    "train": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSansMono",
        "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic",
        "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmtt10", "cmti10",
    ),
    "val": ("DejaVuSans-Oblique", "DejaVuSansMono-BoldOblique", "STIXGeneralItalic", "cmb10"),
    "test": ("DejaVuSansMono-Oblique", "DejaVuSerif-Bold", "STIXGeneralBol", "cmss10"),
}  # fmt: skip
"""Which fonts each split is set in: the test fonts are unseen in training and in adaptation."""


@cache
def font_glyphs(characters: str, split: str) -> Array:
    """Return ink masks `(fonts, characters, GLYPH_SIZE, GLYPH_SIZE)` in 0..1, each glyph centered."""
    return np.stack([[_glyph(char, font) for char in characters] for font in FONTS[split]])


def _glyph(character: str, font: str) -> Array:
    import matplotlib

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{font}.ttf"
    # Basic layout: the same ink whether or not the optional Raqm library is installed.
    face = ImageFont.truetype(path, 34, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character)
    sheet = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE), 0)
    corner = ((GLYPH_SIZE - left - right) / 2, (GLYPH_SIZE - top - bottom) / 2)
    ImageDraw.Draw(sheet).text(corner, character, font=face, fill=255)
    return np.asarray(sheet, np.float32) / 255


@cache
def handwritten_digits(split: str) -> tuple[Array, Array]:
    """Return the handwritten digits of one split: ink `(M, 8, 8)` in 0..1 and labels `(M,)`.

    Three fifths of the 1797 originals belong to train, one fifth each to val and test.
    """
    from sklearn.datasets import load_digits

    ink, labels = load_digits(return_X_y=True)
    turn = np.arange(len(labels)) % 5
    its = {"train": turn < 3, "val": turn == 3, "test": turn == 4}[split]
    return (ink[its].reshape(-1, 8, 8) / 16).astype(np.float32), labels[its]


def choose_handwritten(rng: Rng, labels: Array, split: str) -> Array:
    """Return for each label one handwritten original of the split, `(N, 8, 8)`."""
    ink, digit = handwritten_digits(split)
    chosen = np.empty(len(labels), np.int64)
    for value in np.unique(labels):
        places = labels == value
        chosen[places] = rng.choice(np.flatnonzero(digit == value), places.sum())
    return ink[chosen]


def choose_printed(rng: Rng, labels: Array, characters: str, split: str) -> Array:
    """Return for each label its character in a random font of the split, `(N, GLYPH_SIZE, GLYPH_SIZE)`."""
    glyphs = font_glyphs(characters, split)
    return glyphs[rng.integers(len(glyphs), size=len(labels)), labels]
