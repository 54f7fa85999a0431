"""What a classification task is: its name, class names, caption templates and pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import canvas
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


def class_by_class(classnames, draw_class) -> Draw:
    """A `Draw` from a function that draws `n` images of one named class."""

    def draw(rng, labels, style, split):
        images = np.empty((len(labels), canvas.SIZE, canvas.SIZE, 3), np.float32)
        for label, name in enumerate(classnames):
            mine = labels == label
            if mine.any():
                images[mine] = draw_class(rng, int(mine.sum()), style, split, name)
        return images

    return draw


def generated(draw):
    """A function for `class_by_class` from one whose pictures are the same kind in every split."""
    return lambda rng, n, style, split, name: draw(rng, n, style, name)


def make_task(name, classnames, templates, draw_class=None, draw=None) -> Task:
    """A task from either kind of function; of `classnames`, a mapping's keys count."""
    classnames = tuple(classnames)
    return Task(name, classnames, templates, draw or class_by_class(classnames, draw_class))
