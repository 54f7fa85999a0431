"""The twenty tasks: some of the first eight have real pixels, the others are generated."""

import string

import numpy as np

from fusion_tinting.mini.pictures import canvas, figures, glyphs, icons, patterns, photos
from fusion_tinting.mini.pictures.canvas import Array, Rng, Style
from fusion_tinting.mini.pictures.task import Task, generated, task_by_class


def _ink_on_paper(rng: Rng, ink: Array, style: Style) -> Array:
    """Draw characters `(N, H, W)` in one color on a background of another."""
    n = len(ink)
    x, y = canvas.frame(rng, n, style)
    paper, color = canvas.contrasting(rng, n)
    return canvas.paint(canvas.backdrop(rng, paper, style), canvas.sample(ink, x, y), color)


def _draw_digits(rng: Rng, labels: Array, style: Style, split: str) -> Array:
    return _ink_on_paper(rng, glyphs.choose_handwritten(rng, labels, split), style)


def _draw_letters(rng: Rng, labels: Array, style: Style, split: str) -> Array:
    return _ink_on_paper(rng, glyphs.choose_printed(rng, labels, string.ascii_uppercase, split), style)


def _draw_numbers(rng: Rng, labels: Array, style: Style, split: str) -> Array:
    """Draw house numbers: the digit in the middle counts, its neighbors only distract."""
    n = len(labels)
    x, y = canvas.frame(rng, n, style)
    plate, color = canvas.contrasting(rng, n)
    image = canvas.backdrop(rng, plate, style)
    for place in (-1.3, 0.0, 1.3):
        digits = labels if place == 0 else rng.integers(10, size=n)
        ink = canvas.sample(glyphs.choose_printed(rng, digits, string.digits, split), x - place, y)
        shown = np.ones((n, 1, 1)) if place == 0 else rng.random((n, 1, 1)) < 0.6
        image = canvas.paint(image, ink * shown, color)
    return image


def _draw_photograph(rng: Rng, n: int, style: Style, split: str, name: str) -> Array:
    sides = (44, photos.CELL) if style is canvas.WEB else (40, photos.CELL)
    return photos.crops(rng, n, photos.PHOTOGRAPHS[name], split, sides)


def _draw_texture(rng: Rng, n: int, style: Style, split: str, name: str) -> Array:
    """Draw two tones, so that color says nothing about the class; real materials are mapped likewise."""
    if name in photos.MATERIALS:
        gray = photos.crops(rng, n, photos.MATERIALS[name], split).mean(-1)
        low, high = np.percentile(gray, [2, 98], axis=(1, 2), keepdims=True)
        share = np.clip((gray - low) / (high - low), 0, 1)
    else:
        share = patterns.texture(rng, n, style, name)
    return canvas.blend(*canvas.contrasting(rng, n), share)


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TASKS = {
    task.name: task
    for task in (
        Task(
            "mini-digits", NUMBER_WORDS, _draw_digits,
            ("a handwritten digit {}", "the digit {} written by hand", "handwriting of the digit {}"),
        ),
        Task(
            "mini-letters", tuple(string.ascii_lowercase), _draw_letters,
            ("the printed letter {}", "a letter {} in print", "a printed capital letter {}"),
        ),
        Task(
            "mini-numbers", NUMBER_WORDS, _draw_numbers,
            ("a house number {}", "the number {} on a house", "a street view of the number {}"),
        ),
        task_by_class(
            "mini-photos", photos.PHOTOGRAPHS, _draw_photograph,
            ("a part of the photograph {}", "a photograph {}", "a detail of the photograph {}"),
        ),
        task_by_class(
            "mini-textures", (*photos.MATERIALS, *patterns.TEXTURES), _draw_texture,
            ("a {} texture", "a {} surface", "a close view of a {} texture"),
        ),
        generated(
            "mini-aerial", patterns.AERIAL, patterns.aerial,
            ("an aerial view of a {}", "a {} from above", "a satellite view of a {}"),
        ),
        generated(
            "mini-signs", patterns.SIGNS, patterns.sign,
            ("a {} road sign", "a road sign {}", "a close view of a {} road sign"),
        ),
        generated(
            "mini-cars", patterns.CARS, patterns.car,
            ("a {} car", "a side view of a {} car", "a car of the kind {}"),
        ),
        generated(
            "mini-shapes", figures.SHAPES, figures.shape,
            ("the shape of a {}", "a drawing of a {}", "a {} on paper"),
        ),
        generated(
            "mini-counts", figures.COUNTS, figures.count,
            ("a picture of {} dots", "a count of {}", "there are {} dots"),
        ),
        generated(
            "mini-arrows", figures.ARROWS, figures.arrow,
            ("an arrow to the {}", "an arrow that points {}", "the direction {}"),
        ),
        generated(
            "mini-faces", icons.FACES, icons.face,
            ("a {} face", "a face that looks {}", "somebody {}"),
        ),
        generated(
            "mini-flags", icons.FLAGS, icons.flag,
            ("a {} flag", "a flag of the kind {}", "a waving {} flag"),
        ),
        generated(
            "mini-weather", icons.WEATHER, icons.weather,
            ("{} weather", "a sign for {} weather", "a forecast of {} weather"),
        ),
        generated(
            "mini-clocks", icons.HOURS, icons.clock,
            ("a clock after {}", "a clock that has struck {}", "the hour {} on a clock"),
        ),
        task_by_class(
            "mini-cards", icons.CARDS, icons.card,
            ("a playing card {}", "the {}", "a card game with the {}"),
        ),
        generated(
            "mini-charts", icons.CHARTS, icons.chart,
            ("a {} chart", "a chart of the kind {}", "a diagram with a {} chart"),
        ),
        generated(
            "mini-leaves", figures.LEAVES, figures.leaf,
            ("a leaf of the kind {}", "a {} leaf", "a pressed {} leaf"),
        ),
        generated(
            "mini-curves", figures.CURVES, figures.curve,
            ("a curve called {}", "the {} curve", "a drawn line in the form of a {}"),
        ),
        generated(
            "mini-braille", figures.BRAILLE, figures.braille,
            ("the letter {} in braille", "a braille letter {}", "a raised letter {} in dots"),
        ),
    )
}  # fmt: skip
"""Name -> task, in the order of the tables: `clip-mini_8` has the first eight, `clip-mini_14` six more."""
