"""Twelve more tasks, all generated: six for ``clip-mini_14``, then six for ``clip-mini_20``."""

from __future__ import annotations

from . import figures, icons
from .task import generated, make_task

MORE_TASKS = {
    task.name: task
    for task in (
        make_task(
            "mini-shapes",
            figures.SHAPES,
            ("the shape of a {}", "a drawing of a {}", "a {} on paper"),
            generated(figures.shape),
        ),
        make_task(
            "mini-counts",
            figures.COUNTS,
            ("a picture of {} dots", "a count of {}", "there are {} dots"),
            generated(figures.count),
        ),
        make_task(
            "mini-arrows",
            figures.ARROWS,
            ("an arrow to the {}", "an arrow that points {}", "the direction {}"),
            generated(figures.arrow),
        ),
        make_task(
            "mini-faces",
            icons.FACES,
            ("a {} face", "a face that looks {}", "somebody {}"),
            generated(icons.face),
        ),
        make_task(
            "mini-flags",
            icons.FLAGS,
            ("a {} flag", "a flag of the kind {}", "a waving {} flag"),
            generated(icons.flag),
        ),
        make_task(
            "mini-weather",
            icons.WEATHER,
            ("{} weather", "a sign for {} weather", "a forecast of {} weather"),
            generated(icons.weather),
        ),
        make_task(
            "mini-clocks",
            icons.HOURS,
            ("a clock after {}", "a clock that has struck {}", "the hour {} on a clock"),
            generated(icons.clock),
        ),
        make_task(
            "mini-cards",
            icons.CARDS,
            ("a playing card {}", "the {}", "a card game with the {}"),
            icons.card,
        ),
        make_task(
            "mini-charts",
            icons.CHARTS,
            ("a {} chart", "a chart of the kind {}", "a diagram with a {} chart"),
            generated(icons.chart),
        ),
        make_task(
            "mini-leaves",
            figures.LEAVES,
            ("a leaf of the kind {}", "a {} leaf", "a pressed {} leaf"),
            generated(figures.leaf),
        ),
        make_task(
            "mini-curves",
            figures.CURVES,
            ("a curve called {}", "the {} curve", "a drawn line in the form of a {}"),
            generated(figures.curve),
        ),
        make_task(
            "mini-braille",
            figures.BRAILLE,
            ("the letter {} in braille", "a braille letter {}", "a raised letter {} in dots"),
            generated(figures.braille),
        ),
    )
}
"""Task name -> task, in the order of the tables."""
