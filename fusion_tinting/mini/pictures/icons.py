"""Small pictures in several colors: faces, flags, weather, clocks, playing cards and charts.

The functions that `tasks` names draw one class: `draw(rng, n, style, name) -> (N, SIZE, SIZE, 3)`.
"""

from collections.abc import Callable

import numpy as np

from fusion_tinting.mini.pictures import canvas, glyphs
from fusion_tinting.mini.pictures.canvas import Array, Rng, Style, box, disc, inside, paint, uniform
from fusion_tinting.mini.pictures.figures import heart, star, stroke

DARK, RED, WHITE, YELLOW = (30, 30, 35), (190, 30, 40), (240, 240, 240), (235, 200, 60)


# --- faces ------------------------------------------------------------------------------------------

FACES = {
    #           mouth: bend  width  open   brows  eyes: left  right
    "happy": (0.30, 0.45, 0.05, 0.00, 1.0, 1.0),
    "sad": (-0.30, 0.40, 0.05, 0.00, 1.0, 1.0),
    "angry": (-0.25, 0.40, 0.05, 0.50, 1.0, 1.0),
    "worried": (-0.05, 0.25, 0.05, -0.50, 1.0, 1.0),
    "surprised": (0.00, 0.16, 0.22, 0.00, 1.5, 1.5),
    "laughing": (0.25, 0.42, 0.22, 0.00, 0.3, 0.3),
    "winking": (0.25, 0.40, 0.05, 0.00, 0.3, 1.0),
    "sleepy": (0.00, 0.20, 0.08, 0.00, 0.3, 0.3),
    "bored": (0.00, 0.45, 0.05, 0.00, 1.0, 1.0),
    "shouting": (0.00, 0.34, 0.25, 0.50, 1.0, 1.0),
}
"""Class name of the faces task -> what mouth, brows and eyes do."""


def face(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a round face, light or dark, with features that vary."""
    features = np.asarray(FACES[name]) * rng.normal(1, 0.08, (n, 6)) + rng.normal(0, 0.015, (n, 6))
    bend, width, opening, brows, left, right = (f[:, None, None].astype(np.float32) for f in features.T)
    x, y = canvas.frame(rng, n, style)
    far, skin = canvas.colors(rng, n, (60, 70, 80), (130, 140, 150)), canvas.colors(rng, n, *SKIN)
    image = paint(canvas.backdrop(rng, far, style), disc(x, y, 0.92), skin)
    mouth_line = y - 0.42 + bend * ((x / 0.4) ** 2 - 0.6)
    mouth = inside(np.maximum(np.abs(mouth_line) - opening - 0.03, np.abs(x) - width))
    eyes = _eye(x + 0.36, y + 0.2, left) + _eye(x - 0.36, y + 0.2, right)
    frown = y + 0.52 + brows * (np.abs(x) - 0.36)
    brow = inside(np.maximum(np.abs(frown) - 0.05, np.abs(np.abs(x) - 0.36) - 0.2))
    return paint(image, np.maximum(np.maximum(mouth, eyes), brow), DARK)


SKIN = ((190, 140, 70), (250, 215, 150))


def _eye(x: Array, y: Array, opening: Array) -> Array:
    return inside((np.hypot(x / 0.14, y / (0.16 * opening)) - 1) * 0.12)


# --- flags ------------------------------------------------------------------------------------------

FLAGS = {
    "horizontal": lambda x, y: (np.abs(y) < 0.22, y > 0.22),
    "vertical": lambda x, y: (np.abs(x) < 0.32, x > 0.32),
    "halved": lambda x, y: (y > 0, y > 1),
    "quartered": lambda x, y: (x * y > 0, x > 1),
    "cross": lambda x, y: ((np.abs(x) < 0.2) | (np.abs(y) < 0.2), x > 1),
    "nordic": lambda x, y: ((np.abs(x + 0.35) < 0.18) | (np.abs(y) < 0.18), x > 1),
    "saltire": lambda x, y: (np.abs(np.abs(y) - 0.68 * np.abs(x)) < 0.18, x > 1),
    "disc": lambda x, y: (np.hypot(x, y) < 0.42, x > 1),
    "hoist": lambda x, y: (y > 0, x + 1.4 * np.abs(y) < 0),
    "canton": lambda x, y: (np.sin(14 * y) > 0, (x < 0) & (y < 0)),
    "diagonal": lambda x, y: (np.abs(y + 0.68 * x) < 0.22, y + 0.68 * x > 0.22),
    "bordered": lambda x, y: (np.maximum(np.abs(x) - 0.65, np.abs(y) - 0.35) < 0, x > 1),
}
"""Class name of the flags task -> where its second color is, and where the third."""


def flag(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a waving flag in any three colors before the sky."""
    x, y = canvas.frame(rng, n, style)
    y = y + uniform(rng, n, 0.02, 0.09) * np.sin(3 * x + uniform(rng, n, 0, 6))
    image = canvas.backdrop(rng, canvas.colors(rng, n, (120, 140, 160), (150, 170, 190)), style)
    light, dark = canvas.contrasting(rng, n)
    swap = rng.random((n, 1)) < 0.5
    first, second = np.where(swap, light, dark), np.where(swap, dark, light)
    image = paint(image, box(x, y, 0.98, 0.7), first)
    for color, mask in zip((second, _vivid(rng, n)), FLAGS[name](x, y), strict=True):
        image = paint(image, mask * box(x, y, 0.98, 0.7), color)
    return image


def _vivid(rng: Rng, n: int) -> Array:
    """Return full colors: one channel high, one low."""
    return rng.permuted(np.stack([rng.uniform(*r, n) for r in ((0, 40), (40, 200), (210, 255))], 1), axis=1)


# --- weather ----------------------------------------------------------------------------------------


def _cloud(x: Array, y: Array) -> Array:
    puffs = ((-0.42, 0.02, 0.3), (0, -0.2, 0.4), (0.42, 0, 0.32))
    return np.maximum.reduce(
        [box(x, y - 0.18, 0.62, 0.16), *(disc(x - across, y - down, size) for across, down, size in puffs)]
    )


def _sun(x: Array, y: Array) -> Array:
    rays = inside(np.abs(np.hypot(x, y) - 0.75) - 0.15) * (np.sin(8 * np.arctan2(y, x)) > 0.2)
    return np.maximum(disc(x, y, 0.48), rays)


def _falling(x: Array, y: Array, shape: Callable[[Array, Array], Array]) -> Array:
    """Return the mask of six of a shape under a cloud."""
    row = np.floor((y - 0.3) / 0.3)
    down = (y - 0.3) % 0.3 - 0.15
    across = (x + 0.2 * row) % 0.4 - 0.2
    return shape(across, down) * (y > 0.32) * (y < 0.9) * (np.abs(x) < 0.75)


def _bolt(x: Array, y: Array) -> Array:
    upper = inside(np.maximum(np.abs(x + 0.5 * (y - 0.35)) - 0.12, np.abs(y - 0.35) - 0.28))
    lower = inside(np.maximum(np.abs(x - 0.12 + 0.6 * (y - 0.65)) - 0.09, np.abs(y - 0.7) - 0.25))
    return np.maximum(upper, lower)


def _moon(x: Array, y: Array) -> Array:
    return inside(np.maximum(np.hypot(x, y) - 0.7, 0.55 - np.hypot(x - 0.35, y + 0.1)))


def _stars(x: Array, y: Array) -> Array:
    x, y = ((1.3 * each + 0.5) % 1 - 0.5 for each in (x, y))
    return inside(0.3 * star(2.2 * x, 2.2 * y, 4, 0.35))


def _fog(x: Array, y: Array) -> Array:
    ragged = np.abs(x + 0.2 * np.sin(3 * y)) - 0.75
    return inside(np.maximum(np.abs((y + 0.125) % 0.5 - 0.25) - 0.09, ragged))


def _wind(x: Array, y: Array) -> Array:
    """Return the mask of two gusts, one curling up at its end and one down."""
    curl = np.linspace(-np.pi / 2, np.pi, 40)
    parts = [
        part
        for end, down, up in ((0.3, -0.25, -1), (0.5, 0.2, 1))
        for part in (
            np.stack([np.linspace(-0.9, end, 40), np.full(40, down)]),
            np.stack([end + 0.25 * np.cos(curl), down + up * 0.25 * (1 + np.sin(curl))]),
        )
    ]
    return stroke(x, y, np.concatenate(parts, axis=1), 0.08)


_RAIN, _SNOW, _GRAY, _CLOUD = (60, 110, 200), (250, 250, 250), (200, 200, 205), (215, 215, 220)
_HIGH = (0.0, -0.25, 1.0)
WEATHER = {
    "sunny": [(_sun, YELLOW, (0, 0, 1))],
    "cloudy": [(_cloud, _CLOUD, (0, 0, 1.15))],
    "fair": [(_sun, YELLOW, (0.4, -0.4, 0.75)), (_cloud, _CLOUD, (-0.15, 0.25, 0.9))],
    "rainy": [
        (lambda x, y: _falling(x, y, lambda a, d: box(a + 0.4 * d, d, 0.05, 0.11)), _RAIN, (0, 0, 1)),
        (_cloud, _CLOUD, _HIGH),
    ],
    "snowy": [
        (lambda x, y: _falling(x, y, lambda a, d: disc(a, d, 0.1)), _SNOW, (0, 0, 1)),
        (_cloud, _CLOUD, _HIGH),
    ],
    "stormy": [(_cloud, _CLOUD, _HIGH), (_bolt, YELLOW, (0, 0, 1))],
    "foggy": [(_fog, _GRAY, (0, 0, 1))],
    "windy": [(_wind, _GRAY, (0, 0, 1))],
    "moonlit": [(_moon, YELLOW, (0, 0, 1))],
    "starry": [(_stars, YELLOW, (0, 0, 1))],
}
"""Class name of the weather task -> its parts: what, in which color, at `(x, y)` and how large."""


def weather(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a weather sign on a sky of any darkness."""
    x, y = canvas.frame(rng, n, style)
    sky = uniform(rng, n, 20, 110)[:, 0] + canvas.colors(rng, n, (0, 0, 20), (20, 30, 60))
    image = canvas.backdrop(rng, sky, style)
    for part, color, (across, down, size) in WEATHER[name]:
        size = size * uniform(rng, n, 0.9, 1.1)
        color = np.asarray(color) + rng.normal(0, 12, (n, 3))
        image = paint(image, part((x - across) / size, (y - down) / size), color)
    return image


# --- clocks -----------------------------------------------------------------------------------------

HOURS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
"""Class names of the clocks task."""


def clock(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a clock in the half hour after the full hour, its hour hand moving on as it should."""
    past = uniform(rng, n, 0, 0.5)
    hour = HOURS.index(name) + 1 + past
    x, y = canvas.frame(rng, n, style)
    light, dark = canvas.contrasting(rng, n)
    image = canvas.backdrop(rng, canvas.colors(rng, n, (80, 80, 80), (160, 160, 160)), style)
    image = paint(paint(image, disc(x, y, 0.97), dark), disc(x, y, 0.85), light)
    ring, spokes = np.abs(np.hypot(x, y) - 0.76) - 0.06, np.abs(np.sin(6 * np.arctan2(x, y))) - 0.25
    marks = inside(ring) * inside(spokes)
    hands = np.maximum(_hand(x, y, hour / 12, 0.5, 0.13), _hand(x, y, past, 0.66, 0.04))
    return paint(image, np.maximum(0.6 * marks, hands), dark)


def _hand(x: Array, y: Array, turns: Array, length: float, half_width: float) -> Array:
    angle = 2 * np.pi * turns
    along, across = np.sin(angle) * x - np.cos(angle) * y, np.cos(angle) * x + np.sin(angle) * y
    return inside(np.maximum(np.abs(across) - half_width, np.abs(along - length / 2) - length / 2))


# --- playing cards ----------------------------------------------------------------------------------


def _spade(x: Array, y: Array) -> Array:
    return np.minimum(heart(x, -y - 0.1), np.maximum(np.abs(x) - 0.12, np.abs(y - 0.6) - 0.3))


def _club(x: Array, y: Array) -> Array:
    leaves = np.minimum(np.hypot(x, y + 0.42) - 0.38, np.hypot(np.abs(x) - 0.42, y - 0.15) - 0.38)
    return np.minimum(leaves, np.maximum(np.abs(x) - 0.12, np.abs(y - 0.5) - 0.4))


SUITS = {
    "hearts": (heart, RED),
    "diamonds": (lambda x, y: 0.6 * (np.abs(x) / 0.7 + np.abs(y) - 0.9), RED),
    "spades": (_spade, DARK),
    "clubs": (_club, DARK),
}
RANKS = {"ace": "A", "king": "K", "queen": "Q", "jack": "J"}
CARDS = {f"{rank} of {suit}": (RANKS[rank], suit) for rank in RANKS for suit in SUITS}
"""Class name of the cards task -> rank letter and suit."""


def card(rng: Rng, n: int, style: Style, split: str, name: str) -> Array:
    """Draw a playing card: the rank above on the left, the suit below on the right."""
    rank, suit = CARDS[name]
    distance, color = SUITS[suit]
    x, y = canvas.frame(rng, n, style)
    ink = np.asarray(color) + rng.normal(0, 15, (n, 3))
    table = canvas.colors(rng, n, (20, 60, 30), (110, 120, 110))
    image = paint(canvas.backdrop(rng, table, style), box(x, y, 0.8, 0.98), WHITE)
    letters = glyphs.choose_printed(rng, np.zeros(n, int), rank, split)
    size = uniform(rng, n, 0.5, 0.62)
    image = paint(image, canvas.sample(letters, (x + 0.33) / size, (y + 0.45) / size), ink)
    size = uniform(rng, n, 0.42, 0.52)
    return paint(image, inside(distance((x - 0.3) / size, (y - 0.42) / size) * size), ink)


# --- charts -----------------------------------------------------------------------------------------


def _values(rng: Rng, n: int, course: str) -> Array:
    """Return five values `(N, 5)` in 0..1 that follow a course, unevenly."""
    place = np.linspace(0, 1, 5)
    level = {"rising": place, "falling": 1 - place, "peaked": 1 - np.abs(2 * place - 1)}.get(course)
    level = np.abs(2 * place - 1) if level is None else level
    return np.clip(0.12 + 0.7 * level + rng.normal(0, 0.08, (n, 5)), 0.08, 0.95)


def _bars(rng: Rng, n: int, x: Array, y: Array, course: str) -> Array:
    heights = _values(rng, n, course)[:, :, None, None]
    bars = [
        inside(np.maximum(np.abs(x - place) - 0.13, np.maximum(0.8 - 1.6 * heights[:, i] - y, y - 0.8)))
        for i, place in enumerate(np.linspace(-0.6, 0.7, 5))
    ]
    return np.maximum.reduce(bars)


def _line(rng: Rng, n: int, x: Array, y: Array, course: str) -> Array:
    heights = _values(rng, n, course)
    place = np.linspace(0, 3.999, 60)
    left, share = place.astype(int), place % 1
    level = heights[:, left] * (1 - share) + heights[:, left + 1] * share
    across = np.broadcast_to(np.linspace(-0.65, 0.75, 60), level.shape)
    return stroke(x, y, np.stack([across, 0.8 - 1.6 * level]), uniform(rng, n, 0.06, 0.1))


def _scatter(rng: Rng, n: int, x: Array, y: Array, course: str) -> Array:
    level = _values(rng, n, course)[:, np.arange(10) // 2] + rng.normal(0, 0.1, (n, 10))
    across = np.linspace(-0.65, 0.75, 10) + rng.normal(0, 0.05, (n, 10))
    return stroke(x, y, np.stack([across, 0.8 - 1.6 * level]), 0.09)


CHARTS = {
    f"{course} {kind}": (draw, course)
    for kind, draw in (("bar", _bars), ("line", _line), ("scatter", _scatter))
    for course in ("rising", "falling", "peaked", "hollow")
}
"""Class name of the charts task -> how its values are shown, and how they run."""


def chart(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a chart of five uneven values between two axes."""
    draw, course = CHARTS[name]
    x, y = canvas.frame(rng, n, style)
    light, dark = canvas.contrasting(rng, n)
    axes = np.maximum(box(x + 0.87, y, 0.03, 0.9), box(x, y - 0.87, 0.9, 0.03))
    image = paint(canvas.backdrop(rng, light, style), axes, DARK)
    return paint(image, draw(rng, n, x, y, course), dark)
