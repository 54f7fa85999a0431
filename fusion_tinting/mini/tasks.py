"""The tasks: eight here, some of them with real pixels, and twelve generated ones in `more_tasks`."""

from __future__ import annotations

import string

import numpy as np

from . import canvas, glyphs, patterns, photos
from .more_tasks import MORE_TASKS
from .task import generated, make_task


def _ink_on_paper(rng, ink, style) -> np.ndarray:
    """Characters ``(N, H, W)`` in one colour on a background of another."""
    n = len(ink)
    x, y = canvas.frame(rng, n, style)
    paper, colour = canvas.contrasting(rng, n)
    return canvas.paint(canvas.backdrop(rng, paper, style), canvas.sample(ink, x, y), colour)


def _draw_digits(rng, labels, style, split):
    return _ink_on_paper(rng, glyphs.choose_handwritten(rng, labels, split), style)


def _draw_letters(rng, labels, style, split):
    return _ink_on_paper(rng, glyphs.choose_printed(rng, labels, string.ascii_uppercase, split), style)


def _draw_numbers(rng, labels, style, split):
    """A house number: the digit in the middle counts, its neighbours only distract."""
    n = len(labels)
    x, y = canvas.frame(rng, n, style)
    plate, colour = canvas.contrasting(rng, n)
    image = canvas.backdrop(rng, plate, style)
    for place in (-1.3, 0.0, 1.3):
        digits = labels if place == 0 else rng.integers(10, size=n)
        ink = canvas.sample(glyphs.choose_printed(rng, digits, string.digits, split), x - place, y)
        shown = np.ones((n, 1, 1)) if place == 0 else rng.random((n, 1, 1)) < 0.6
        image = canvas.paint(image, ink * shown, colour)
    return image


def _draw_photograph(rng, n, style, split, name):
    sides = (44, photos.CELL) if style is canvas.WEB else (40, photos.CELL)
    return photos.crops(rng, n, photos.PHOTOGRAPHS[name], split, sides)


def _draw_texture(rng, n, style, split, name):
    """Two tones, so that colour says nothing about the class; real materials are mapped likewise."""
    if name in photos.MATERIALS:
        grey = photos.crops(rng, n, photos.MATERIALS[name], split).mean(-1)
        low, high = np.percentile(grey, [2, 98], axis=(1, 2), keepdims=True)
        share = np.clip((grey - low) / (high - low), 0, 1)
    else:
        share = patterns.texture(rng, n, style, name)
    return canvas.blend(*canvas.contrasting(rng, n), share)


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

EIGHT = {
    task.name: task
    for task in (
        make_task(
            "mini-digits",
            NUMBER_WORDS,
            ("a handwritten digit {}", "the digit {} written by hand", "handwriting of the digit {}"),
            draw=_draw_digits,
        ),
        make_task(
            "mini-letters",
            string.ascii_lowercase,
            ("the printed letter {}", "a letter {} in print", "a printed capital letter {}"),
            draw=_draw_letters,
        ),
        make_task(
            "mini-numbers",
            NUMBER_WORDS,
            ("a house number {}", "the number {} on a house", "a street view of the number {}"),
            draw=_draw_numbers,
        ),
        make_task(
            "mini-photos",
            photos.PHOTOGRAPHS,
            ("a part of the photograph {}", "a photograph {}", "a detail of the photograph {}"),
            _draw_photograph,
        ),
        make_task(
            "mini-textures",
            (*photos.MATERIALS, *patterns.TEXTURES),
            ("a {} texture", "a {} surface", "a close view of a {} texture"),
            _draw_texture,
        ),
        make_task(
            "mini-aerial",
            patterns.AERIAL,
            ("an aerial view of a {}", "a {} from above", "a satellite view of a {}"),
            generated(patterns.aerial),
        ),
        make_task(
            "mini-signs",
            patterns.SIGNS,
            ("a {} road sign", "a road sign {}", "a close view of a {} road sign"),
            generated(patterns.sign),
        ),
        make_task(
            "mini-cars",
            patterns.CARS,
            ("a {} car", "a side view of a {} car", "a car of the kind {}"),
            generated(patterns.car),
        ),
    )
}
"""The tasks of ``clip-mini_8``."""

TASKS = EIGHT | MORE_TASKS
"""Task name -> task, in the order of the tables."""
