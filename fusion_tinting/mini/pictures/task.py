"""What a classification task of pictures is: its name, class names, caption templates and drawing."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fusion_tinting.mini.pictures import canvas
from fusion_tinting.mini.pictures.canvas import Array, Rng, Style
from fusion_tinting.mini.recipe import SPLITS

Draw = Callable[[Rng, Array, Style, str], Array]
"""`draw(rng, labels, style, split) -> images`: labels `(N,)`, images `(N, SIZE, SIZE, 3)`."""

DrawClass = Callable[[Rng, int, Style, str, str], Array]
"""`draw(rng, n, style, split, name) -> images`: `n` images of the class `name`."""

DrawGenerated = Callable[[Rng, int, Style, str], Array]
"""`draw(rng, n, style, name) -> images`: as `DrawClass`, where no split has pixels of its own."""


@dataclass(frozen=True)
class Task:
    """A classification task.

    Args:
        name: What users call it.
        classnames: Of its labels.
        draw: Draws images of given classes; its `split` says which real pixels and fonts it may use.
        templates: Captions, with `{}` where the class name goes.
    """

    name: str
    classnames: tuple[str, ...]
    draw: Draw
    templates: tuple[str, ...]

    def captions(self, template: int) -> list[str]:
        """Return the caption of each class, by one of the templates."""
        return [self.templates[template].format(name) for name in self.classnames]

    def render(self, n: int, split: str, style: Style, seed: int) -> tuple[Array, Array]:
        """Return images `(N, SIZE, SIZE, 3)` uint8 and their labels `(N,)`, the same for a seed.

        Args:
            n: Number of images, spread evenly over the classes.
            split: Whose real pixels and fonts are used.
            style: How freely the pictures are taken.
            seed: Another seed gives other images.
        """
        stream = [seed, zlib.crc32(self.name.encode()), SPLITS.index(split), style.camera]
        rng = np.random.default_rng(stream)
        labels = rng.permutation(np.arange(n) % len(self.classnames))
        return canvas.finish(rng, self.draw(rng, labels, style, split), style), labels


def task_by_class(
    name: str, classnames: Iterable[str], draw: DrawClass, templates: tuple[str, ...]
) -> Task:
    """Return a task from a function that draws one class.

    Args:
        name: Of the task.
        classnames: Of its labels; of a mapping, the keys.
        draw: Draws images of a class.
        templates: Of its captions.
    """
    classnames = tuple(classnames)

    def draw_all(rng: Rng, labels: Array, style: Style, split: str) -> Array:
        images = np.empty((len(labels), canvas.SIZE, canvas.SIZE, 3), np.float32)
        for label, classname in enumerate(classnames):
            chosen = labels == label
            if chosen.any():
                images[chosen] = draw(rng, int(chosen.sum()), style, split, classname)
        return images

    return Task(name, classnames, draw_all, templates)


def generated(
    name: str, classnames: Iterable[str], draw: DrawGenerated, templates: tuple[str, ...]
) -> Task:
    """Return a task whose pictures are of the same kind in every split; otherwise as `task_by_class`."""

    def draw_class(rng: Rng, n: int, style: Style, split: str, name: str) -> Array:
        return draw(rng, n, style, name)

    return task_by_class(name, classnames, draw_class, templates)
