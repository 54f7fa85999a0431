"""Plane figures in one ink on paper: shapes, counted dots, arrows, leaves, curves and braille.

A figure is a function of coordinates that returns its mask, or its signed distance where that is said. The
functions that `tasks` names draw one class: `draw(rng, n, style, name) -> (N, SIZE, SIZE, 3)`.
"""

import numpy as np

from fusion_tinting.mini.pictures import canvas
from fusion_tinting.mini.pictures.canvas import Array, Rng, Style, box, disc, inside, paint, uniform

FREELY = 0.5
"""Largest rotation, in radians, of a figure that is the same figure whichever way it lies."""


def _printed(rng: Rng, n: int, style: Style, mask: Array) -> Array:
    """Draw a mask in light ink on dark paper or in dark ink on light."""
    light, dark = canvas.contrasting(rng, n)
    swap = rng.random((n, 1)) < 0.5
    paper, ink = np.where(swap, light, dark), np.where(swap, dark, light)
    return paint(canvas.backdrop(rng, paper, style), mask, ink)


def _turned(x: Array, y: Array, angle: Array | float) -> tuple[Array, Array]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def stroke(x: Array, y: Array, points: Array, half_width: Array | float) -> Array:
    """Return the mask of a line through close points, `(2, M)` or for each image its own `(2, N, M)`."""
    across, down = (np.broadcast_to(each, (len(x), each.shape[-1])) for each in points)
    nearest = np.full(x.shape, np.inf, np.float32)
    for i in range(across.shape[1]):
        distance = (x - across[:, i, None, None]) ** 2 + (y - down[:, i, None, None]) ** 2
        np.minimum(nearest, distance, out=nearest)
    return inside(np.sqrt(nearest) - half_width)


# --- shapes, as signed distances --------------------------------------------------------------------


def star(x: Array, y: Array, points: int, waist: float) -> Array:
    """Return the distance of a star: corners at radius 0.9, those between them at `waist` times that."""
    half = np.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    inward, sideways = 1 - waist * np.cos(half), waist * np.sin(half)
    return (sideways * (along - 0.9) + inward * across) / np.hypot(inward, sideways)


def polygon(x: Array, y: Array, sides: int) -> Array:
    """Return the distance of a regular polygon that stands on a side."""
    return star(x, y, sides, np.cos(np.pi / sides))


def heart(x: Array, y: Array) -> Array:
    """Return the distance of a heart with its tip at the bottom."""
    x = np.abs(x)
    tip = 0.7 * np.maximum.reduce([x + y - 0.75, x - y - 0.6, -y - 0.35])
    return np.minimum(np.hypot(x - 0.38, y + 0.3) - 0.45, tip)


def _slab(x: Array, y: Array, half_width: Array | float, half_height: Array | float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.8,
    "ellipse": lambda x, y: np.hypot(x, 1.7 * y) - 0.9,
    "triangle": lambda x, y: polygon(x, y, 3),
    "square": lambda x, y: _slab(x, y, 0.68, 0.68),
    "rhombus": lambda x, y: 0.5 * (np.abs(x) / 0.6 + np.abs(y) - 0.9),
    "pentagon": lambda x, y: polygon(x, y, 5),
    "octagon": lambda x, y: polygon(x, y, 8),
    "star": lambda x, y: star(x, y, 5, 0.45),
    "heart": heart,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.85, 0.6 - np.hypot(x - 0.4, y)),
    "cross": lambda x, y: np.minimum(_slab(x, y, 0.85, 0.25), _slab(x, y, 0.25, 0.85)),
    "semicircle": lambda x, y: np.maximum(np.hypot(x, y - 0.4) - 0.9, y - 0.4),
}
"""Class name of the shapes task -> its signed distance."""


def shape(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a shape, filled or in outline, a little wider or narrower than it should be."""
    x, y = canvas.frame(rng, n, style, turn=FREELY)
    distance = SHAPES[name](x * uniform(rng, n, 0.9, 1.12), y)
    outlined = rng.random((n, 1, 1)) < 0.5
    return _printed(rng, n, style, inside(np.where(outlined, np.abs(distance + 0.06) - 0.08, distance)))


# --- counting ---------------------------------------------------------------------------------------

COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
"""Class names of the counts task."""


def count(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw that many dots, all round or all square, in any of nine places."""
    x, y = canvas.frame(rng, n, style)
    place_in_order = rng.permuted(np.tile(np.arange(9), (n, 1)), axis=1)
    size, square = uniform(rng, n, 0.17, 0.24), rng.random((n, 1, 1)) < 0.5
    mask = np.zeros(x.shape, np.float32)
    for place in range(9):
        left = x - 0.62 * (place % 3 - 1) - uniform(rng, n, -0.06, 0.06)
        top = y - 0.62 * (place // 3 - 1) - uniform(rng, n, -0.06, 0.06)
        dot = np.where(square, box(left, top, 0.9 * size, 0.9 * size), disc(left, top, size))
        mask += dot * (place_in_order[:, place, None, None] <= COUNTS.index(name))
    return _printed(rng, n, style, mask)


# --- arrows -----------------------------------------------------------------------------------------

COMPASS = (
    "north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest",
)  # fmt: skip
ARROWS = {name: (number, False) for number, name in enumerate(COMPASS)} | {
    f"{COMPASS[number]} and {COMPASS[number + 4]}": (number, True) for number in range(4)
}
"""Class name of the arrows task -> eighths of a turn from north, and whether it points both ways."""


def arrow(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw an arrow with a solid or an open head, long or short."""
    eighths, both = ARROWS[name]
    x, y = _turned(*canvas.frame(rng, n, style), eighths * np.pi / 4)
    length, slope = uniform(rng, n, 0.65, 0.9), uniform(rng, n, 0.7, 1.1)
    solid = rng.random((n, 1, 1)) < 0.5
    mask = box(x, y, uniform(rng, n, 0.07, 0.13), length - 0.1)
    for end in (y, -y) if both else (y,):
        behind_tip = end + length
        edge = slope * np.abs(x) - behind_tip
        open_head = inside(np.abs(edge + 0.12) - 0.12) * inside(behind_tip - 0.6)
        head = np.where(solid, inside(np.maximum(edge, behind_tip - 0.55)), open_head)
        mask = np.maximum(mask, head)
    return _printed(rng, n, style, mask)


# --- leaves -----------------------------------------------------------------------------------------


def _oval(x: Array, y: Array, width: Array | float, height: float = 0.85) -> Array:
    return np.hypot(x / width, y / height) - 1


def _leaflets(x: Array, y: Array, pairs: int, length: Array | float, width: float, slant: float) -> Array:
    """Return the distance of pairs of oval leaflets along a stalk."""
    mask = _slab(x, y, 0.04, 0.9)
    for place in np.linspace(-0.7, 0.55, pairs):
        left, down = _turned(np.abs(x) - length, y - place + slant * length, slant)
        mask = np.minimum(mask, np.hypot(left, down * length / width) - length)
    return mask


LEAVES = {
    "oval": lambda x, y: 0.4 * _oval(x, y, 0.45),
    "round": lambda x, y: np.hypot(x, y + 0.15) - 0.68,
    "narrow": lambda x, y: 0.15 * _oval(x, y, 0.16, 0.95),
    "heart": heart,
    "oak": lambda x, y: np.abs(x) - (0.32 + 0.15 * np.cos(13 * y)) * np.sqrt(np.clip(1 - y * y, 0, 1)),
    "maple": lambda x, y: star(x, y + 0.1, 5, 0.42),
    "clover": lambda x, y: np.minimum(
        np.hypot(x, y + 0.45) - 0.38, np.hypot(np.abs(x) - 0.45, y - 0.2) - 0.38
    ),
    "ginkgo": lambda x, y: np.maximum(np.hypot(x, y - 0.5) - 1.2, 0.6 * np.abs(x) + y - 0.5),
    "ash": lambda x, y: _leaflets(x, y, 4, 0.3, 0.14, 0.5),
    "fern": lambda x, y: _leaflets(x, y, 8, 0.25 - 0.12 * np.clip(-y, 0, 1), 0.05, 0.3),
    "palm": lambda x, y: star(x, y, 9, 0.3),
    "arrowhead": lambda x, y: 0.7 * np.maximum(1.8 * np.abs(x) - y - 0.85, y - 0.2 - 0.7 * np.abs(x)),
}
"""Class name of the leaves task -> its signed distance, tip up."""


def leaf(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a leaf with stalk and midrib on paper, green, yellow or brown."""
    x, y = canvas.frame(rng, n, style, turn=FREELY)
    y = y + uniform(rng, n, -0.06, 0.06) * np.sin(4 * x)
    blade = inside(LEAVES[name](x * uniform(rng, n, 0.85, 1.2), y))
    paper = canvas.colors(rng, n, (170, 170, 160), (240, 240, 230))
    color = canvas.colors(rng, n, (30, 60, 10), (150, 130, 50))
    image = paint(canvas.backdrop(rng, paper, style), inside(np.abs(x) - 0.04) * (y > 0), color)
    image = paint(image, blade, color)
    return paint(image, 0.5 * blade * inside(np.abs(x) - 0.03), paper)


# --- curves -----------------------------------------------------------------------------------------

_T = np.linspace(-1, 1, 140)
_ROUND = np.pi * _T


def _polar(radius: Array) -> Array:
    return np.stack([radius * np.sin(_ROUND), -radius * np.cos(_ROUND)])


CURVES = {
    "wave": np.stack([0.9 * _T, 0.5 * np.sin(2 * _ROUND)]),
    "zigzag": np.stack([0.9 * _T, 1.2 * np.abs((3 * _T + 0.5) % 2 - 1) - 0.6]),
    "spiral": np.stack([(0.5 + 0.4 * _T) * np.cos(2 * _ROUND), (0.5 + 0.4 * _T) * np.sin(2 * _ROUND)]),
    "parabola": np.stack([0.8 * _T, 0.8 - 1.6 * _T**2]),
    "cubic": np.stack([0.8 * _T, 2 * (_T**3 - 0.6 * _T)]),
    "figure eight": np.stack([0.85 * np.sin(_ROUND), 0.5 * np.sin(2 * _ROUND)]),
    "ribbon": np.stack([1.1 * _T * (_T**2 - 0.55) * 1.7, 0.85 - 1.6 * (1 - _T**2)]),
    "trefoil": _polar(0.9 * np.cos(3 * _ROUND)),
    "quatrefoil": _polar(0.9 * np.cos(2 * _ROUND)),
    "cardioid": _polar(0.48 * (1 + np.cos(_ROUND))) + np.array([[0], [0.4]]),
    "astroid": 0.9 * np.stack([np.cos(_ROUND) ** 3, np.sin(_ROUND) ** 3]),
    "cycloid": np.stack([0.65 * _T + 0.28 * np.sin(3 * _ROUND), 0.45 * np.cos(3 * _ROUND)]),
}
"""Class name of the curves task -> points of it, `(2, M)`."""


def curve(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a line, mirrored or not, with any pen."""
    x, y = canvas.frame(rng, n, style, turn=FREELY)
    x = x * np.where(rng.random((n, 1, 1)) < 0.5, -1, 1) * uniform(rng, n, 0.9, 1.15)
    return _printed(rng, n, style, stroke(x, y, CURVES[name], uniform(rng, n, 0.05, 0.1)))


# --- braille ----------------------------------------------------------------------------------------

BRAILLE = {
    "a": "1", "b": "12", "c": "14", "d": "145", "e": "15", "f": "124", "g": "1245", "h": "125",
    "i": "24", "j": "245", "k": "13", "l": "123", "m": "134", "n": "1345", "o": "135", "p": "1234",
}  # fmt: skip
"""Class name of the braille task -> its raised dots: 1 to 3 down the left side, 4 to 6 down the right."""


def braille(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw one braille cell; the dots that are not raised show a little."""
    x, y = canvas.frame(rng, n, style)
    raised, flat = uniform(rng, n, 0.17, 0.24), uniform(rng, n, 0.03, 0.08)
    mask = np.zeros(x.shape, np.float32)
    for number in range(6):
        side, line = divmod(number, 3)
        radius = raised if str(number + 1) in BRAILLE[name] else flat
        mask += disc(x - 0.36 * (2 * side - 1), y - 0.62 * (line - 1), radius)
    return _printed(rng, n, style, mask)
