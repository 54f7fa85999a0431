"""The eight tasks: their names, class names, caption templates and pictures."""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import canvas, glyphs, patterns, photos
from .canvas import Style

SPLITS = ("train", "val", "test")

Draw = Callable[[np.random.Generator, np.ndarray, Style, str], np.ndarray]
"""``draw(rng, labels, style, split) -> images``: labels ``(N,)``, images ``(N, SIZE, SIZE, 3)``."""


@dataclass(frozen=True)
class Task:
    """One classification task."""

    name: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    """Captions, with ``{}`` where the class name goes."""
    draw: Draw
    """Draws images of given classes; `split` says which real pixels and fonts it may use."""

    def captions(self, template: int) -> list[str]:
        """The caption of each class, by one of the templates."""
        return [self.templates[template].format(name) for name in self.classnames]

    def render(self, n: int, split: str, style: Style, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`n` images ``(N, SIZE, SIZE, 3)`` uint8 with their labels ``(N,)``, the same for a seed."""
        stream = [seed, zlib.crc32(self.name.encode()), SPLITS.index(split), style.camera]
        rng = np.random.default_rng(stream)
        labels = rng.permutation(np.arange(n) % len(self.classnames))
        return canvas.finish(rng, self.draw(rng, labels, style, split), style), labels


def _class_by_class(classnames, draw_class) -> Draw:
    """A `Draw` from a function that draws `n` images of one named class."""

    def draw(rng, labels, style, split):
        images = np.empty((len(labels), canvas.SIZE, canvas.SIZE, 3), np.float32)
        for label, name in enumerate(classnames):
            mine = labels == label
            if mine.any():
                images[mine] = draw_class(rng, int(mine.sum()), style, split, name)
        return images

    return draw


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


def _generated(draw):
    return lambda rng, n, style, split, name: draw(rng, n, style, name)


def _task(name, classnames, templates, draw_class=None, draw=None) -> Task:
    classnames = tuple(classnames)
    return Task(name, classnames, templates, draw or _class_by_class(classnames, draw_class))


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TASKS = {
    task.name: task
    for task in (
        _task(
            "mini-digits",
            NUMBER_WORDS,
            ("a handwritten digit {}", "the digit {} written by hand", "handwriting of the digit {}"),
            draw=_draw_digits,
        ),
        _task(
            "mini-letters",
            string.ascii_lowercase,
            ("the printed letter {}", "a letter {} in print", "a printed capital letter {}"),
            draw=_draw_letters,
        ),
        _task(
            "mini-numbers",
            NUMBER_WORDS,
            ("a house number {}", "the number {} on a house", "a street view of the number {}"),
            draw=_draw_numbers,
        ),
        _task(
            "mini-photos",
            photos.PHOTOGRAPHS,
            ("a part of the photograph {}", "a photograph {}", "a detail of the photograph {}"),
            _draw_photograph,
        ),
        _task(
            "mini-textures",
            (*photos.MATERIALS, *patterns.TEXTURES),
            ("a {} texture", "a {} surface", "a close view of a {} texture"),
            _draw_texture,
        ),
        _task(
            "mini-aerial",
            patterns.AERIAL,
            ("an aerial view of a {}", "a {} from above", "a satellite view of a {}"),
            _generated(patterns.aerial),
        ),
        _task(
            "mini-signs",
            patterns.SIGNS,
            ("a {} road sign", "a road sign {}", "a close view of a {} road sign"),
            _generated(patterns.sign),
        ),
        _task(
            "mini-cars",
            patterns.CARS,
            ("a {} car", "a side view of a {} car", "a car of the kind {}"),
            _generated(patterns.car),
        ),
    )
}
"""Task name -> task, in the order of the tables."""
