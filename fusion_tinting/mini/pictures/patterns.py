"""What the generated pictures of `clip-mini_8` show: textures, land from above, road signs and cars.

The functions that `tasks` names draw one class: `draw(rng, n, style, name) -> (N, SIZE, SIZE, 3)`, or for a
texture the share of its lighter tone `(N, SIZE, SIZE)` in 0..1.
"""

import numpy as np

from fusion_tinting.mini.pictures import canvas
from fusion_tinting.mini.pictures.canvas import Array, Color, Rng, Style, box, disc, inside, paint, uniform

# --- textures ---------------------------------------------------------------------------------------


def _wave(phase: Array) -> Array:
    return 0.5 + 0.5 * np.sin(phase)


def _sharp(value: Array) -> Array:
    return np.clip(0.5 + 2.5 * value, 0, 1)


def _triangle(phase: Array) -> Array:
    return np.abs((phase / np.pi) % 2 - 1) * 2 - 1


def _cracks(rng: Rng, n: int, x: Array, y: Array) -> Array:
    """Return the mask of the edges of ten cells: where the two nearest of ten points are equally far."""
    points = rng.uniform(-1.2, 1.2, (n, 2, 10)).astype(np.float32)
    distances = np.stack(
        [np.hypot(x - points[:, 0, i, None, None], y - points[:, 1, i, None, None]) for i in range(10)]
    )
    nearest = np.partition(distances, 1, axis=0)
    return inside(nearest[1] - nearest[0] - 0.1, 0.12)


def _dots(x: Array, y: Array, radius: Array | float) -> Array:
    return inside(np.hypot((x + 0.5) % 1 - 0.5, (y + 0.5) % 1 - 0.5) - radius, 0.25)


TEXTURES = {
    "striped": lambda rng, n, x, y, f: _sharp(np.sin(f * x)),
    "chequered": lambda rng, n, x, y, f: _sharp(1.6 * np.sin(0.7 * f * x) * np.sin(0.7 * f * y)),
    "dotted": lambda rng, n, x, y, f: _dots(f * x / 5, f * y / 5, uniform(rng, n, 0.2, 0.32)),
    "grid": lambda rng, n, x, y, f: _sharp(np.maximum(np.sin(f * x), np.sin(f * y)) - 0.75),
    "zigzag": lambda rng, n, x, y, f: _sharp(np.sin(f * y + 2 * _triangle(0.6 * f * x))),
    "ringed": lambda rng, n, x, y, f: _sharp(np.sin(1.2 * f * np.hypot(x, y))),
    "marbled": lambda rng, n, x, y, f: _wave(0.6 * f * x + 2.2 * canvas.clouds(rng, n, 5)),
    "cracked": lambda rng, n, x, y, f: _cracks(rng, n, x, y),
    "speckled": lambda rng, n, x, y, f: (canvas.clouds(rng, n, 24) > 1.0).astype(np.float32),
}
"""Class name of the textures task -> share of the lighter tone, from coordinates and frequency."""


def texture(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Return the share of the lighter tone of a generated texture, in any direction."""
    x, y = canvas.frame(rng, n, style, turn=0.6 if style is canvas.WEB else np.pi)
    x, y = x + uniform(rng, n, -0.5, 0.5), y + uniform(rng, n, -0.5, 0.5)
    return TEXTURES[name](rng, n, x, y, uniform(rng, n, 7, 12)).astype(np.float32)


# --- land from above --------------------------------------------------------------------------------

GREEN, SAND, WATER = (70, 110, 60), (200, 175, 130), (60, 95, 140)
ASPHALT, CONCRETE, ROOF, WHITE = (95, 95, 100), (165, 165, 160), (165, 90, 70), (235, 235, 235)


def _ground(rng: Rng, n: int, style: Style, color: Color) -> Array:
    return canvas.backdrop(rng, canvas.colors(rng, n, *_around(color, 28)), style)


def _around(color: Color, spread: float) -> tuple[Array, Array]:
    color = np.asarray(color, np.float32)
    return color - spread, color + spread


def _rows_of(x: Array, y: Array, pitch: Array | float, half_width: float, half_height: float) -> Array:
    """Return the mask of equal rectangles in rows and columns."""
    return box((x / pitch + 0.5) % 1 - 0.5, (y / pitch + 0.5) % 1 - 0.5, half_width, half_height)


def _forest(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    image = _ground(rng, n, style, (55, 85, 50))
    return image + 26 * np.sign(canvas.clouds(rng, n, 13))[..., None]


def _desert(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    image = _ground(rng, n, style, SAND)
    return image + 22 * np.sin(9 * y + 2 * canvas.clouds(rng, n, 3))[..., None]


def _river(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    bend = 0.35 * np.sin(uniform(rng, n, 1.5, 3.5) * y + uniform(rng, n, 0, 6))
    mask = inside(np.abs(x - bend) - uniform(rng, n, 0.15, 0.3))
    return paint(_ground(rng, n, style, GREEN), mask, WATER)


def _highway(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    half = uniform(rng, n, 0.16, 0.28)
    image = paint(_ground(rng, n, style, GREEN), inside(np.abs(x) - half), ASPHALT)
    return paint(image, inside(np.abs(x) - 0.03), WHITE)


def _crossroads(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    half = uniform(rng, n, 0.14, 0.25)
    road = np.maximum(inside(np.abs(x) - half), inside(np.abs(y) - half))
    return paint(_ground(rng, n, style, GREEN), road, ASPHALT)


def _runway(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    half = uniform(rng, n, 0.28, 0.42)
    image = paint(_ground(rng, n, style, CONCRETE), inside(np.abs(x) - half), ASPHALT)
    dashes = inside(np.abs(x) - 0.05) * (np.sin(9 * y) > 0)
    threshold = inside(np.abs(np.abs(y) - 0.75) - 0.12) * (np.sin(24 * x) > 0)
    return paint(image, np.maximum(dashes, threshold * inside(np.abs(x) - half)), WHITE)


def _car_park(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    image = _ground(rng, n, style, ASPHALT)
    for color in ((215, 215, 215), (160, 60, 60)):
        taken = uniform(rng, n, -0.2, 0.3) < canvas.clouds(rng, n, 9)
        image = paint(image, _rows_of(x, y, 0.33, 0.3, 0.4) * taken, color)
    return image


def _harbour(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    image = paint(_ground(rng, n, style, WATER), inside(x - uniform(rng, n, -0.6, -0.2)), CONCRETE)
    return paint(image, _rows_of(x, y, 0.45, 0.38, 0.18) * (x > -0.15), WHITE)


def _farmland(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    image = _ground(rng, n, style, (125, 140, 70))
    field = (x > uniform(rng, n, -0.4, 0.4)).astype(np.float32)
    image = paint(image, field, canvas.colors(rng, n, (110, 90, 40), (190, 170, 90)))
    furrows = np.where(field > 0, np.sin(18 * x), np.sin(18 * y))
    return image + 20 * furrows[..., None]


def _housing(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    pitch = uniform(rng, n, 0.5, 0.7)
    return paint(_ground(rng, n, style, GREEN), _rows_of(x, y, pitch, 0.28, 0.26), ROOF)


def _tanks(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    pitch = uniform(rng, n, 0.6, 0.9)
    wrapped = (x / pitch + 0.5) % 1 - 0.5, (y / pitch + 0.5) % 1 - 0.5
    return paint(_ground(rng, n, style, CONCRETE), disc(*wrapped, 0.36), WHITE)


def _stadium(rng: Rng, n: int, style: Style, x: Array, y: Array) -> Array:
    x = x * uniform(rng, n, 1.1, 1.5)
    image = paint(_ground(rng, n, style, CONCRETE), disc(x, y, 0.85), (200, 195, 190))
    return paint(image, disc(x, y, uniform(rng, n, 0.45, 0.6)), (80, 140, 70))


AERIAL = {
    "forest": _forest,
    "desert": _desert,
    "river": _river,
    "highway": _highway,
    "crossroads": _crossroads,
    "runway": _runway,
    "car park": _car_park,
    "harbour": _harbour,
    "farmland": _farmland,
    "housing": _housing,
    "tanks": _tanks,
    "stadium": _stadium,
}
"""Class name of the aerial task -> how to draw it, from coordinates in a random direction."""


def aerial(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw land seen from above, whichever way the aircraft flies."""
    x, y = canvas.frame(rng, n, style, turn=np.pi)
    return AERIAL[name](rng, n, style, x, y)


# --- road signs -------------------------------------------------------------------------------------

OUTLINES = {
    "round": lambda x, y: inside(np.hypot(x, y) - 0.9),
    "square": lambda x, y: box(x, y, 0.8, 0.8),
    "diamond": lambda x, y: inside(np.abs(x) + np.abs(y) - 1.05),
    "triangular": lambda x, y: inside(np.maximum(1.7 * np.abs(x) - y - 0.75, y - 0.7)),
    "octagonal": lambda x, y: inside(
        np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.85, (np.abs(x) + np.abs(y)) / 1.3 - 0.92)
    ),
}

SYMBOLS = {
    "bar": lambda x, y: box(x, y, 0.42, 0.13),
    "cross": lambda x, y: np.maximum(box(x + y, x - y, 0.6, 0.14), box(x - y, x + y, 0.6, 0.14)),
    "arrow": lambda x, y: np.maximum(
        box(x, y - 0.15, 0.1, 0.32), inside(np.abs(y + 0.1 - np.abs(x) * 0.8) - 0.12) * box(x, y, 0.38, 0.5)
    ),
    "ring": lambda x, y: inside(np.abs(np.hypot(x, y) - 0.3) - 0.1),
}

SIGNS = {f"{outline} {symbol}": (outline, symbol) for outline in OUTLINES for symbol in SYMBOLS}
"""Class name of the signs task -> outline and symbol."""


def sign(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw a road sign in two contrasting colors before a background."""
    outline, symbol = SIGNS[name]
    x, y = canvas.frame(rng, n, style)
    plate, ink = canvas.contrasting(rng, n)
    image = canvas.backdrop(rng, canvas.colors(rng, n, (90, 100, 90), (140, 150, 140)), style)
    image = paint(image, OUTLINES[outline](x, y), plate)
    return paint(image, SYMBOLS[symbol](x, y), ink)


# --- cars -------------------------------------------------------------------------------------------

CARS = {
    #              length height  cabin from/to  cabin height  slopes      wheels
    "saloon": (0.90, 0.22, -0.45, 0.45, 0.30, 0.22, 0.22, 0.20),
    "hatchback": (0.72, 0.24, -0.35, 0.62, 0.32, 0.25, 0.08, 0.20),
    "coupe": (0.85, 0.18, -0.25, 0.50, 0.24, 0.35, 0.35, 0.21),
    "estate": (0.92, 0.22, -0.35, 0.88, 0.30, 0.22, 0.05, 0.20),
    "van": (0.85, 0.34, -0.70, 0.83, 0.45, 0.15, 0.02, 0.19),
    "pickup": (0.95, 0.24, -0.45, 0.15, 0.36, 0.15, 0.04, 0.24),
    "bus": (0.97, 0.40, -0.95, 0.95, 0.52, 0.03, 0.03, 0.18),
    "lorry": (0.97, 0.20, -0.15, 0.97, 0.72, 0.02, 0.02, 0.21),
    "jeep": (0.75, 0.32, -0.30, 0.72, 0.42, 0.05, 0.03, 0.30),
    "roadster": (0.80, 0.20, -0.10, 0.20, 0.16, 0.18, 0.04, 0.22),
}
"""Class name of the cars task -> the proportions of its side view."""


def car(rng: Rng, n: int, style: Style, name: str) -> Array:
    """Draw the side view of a car of any color, facing either way, with proportions that vary."""
    vary = 0.035 if style is canvas.WEB else 0.055
    proportions = np.asarray(CARS[name]) * rng.normal(1, vary, (n, 8))
    proportions = proportions + rng.normal(0, vary / 3, (n, 8))
    length, height, start, end, cabin, front, back, wheel = (
        value[:, None, None].astype(np.float32) for value in proportions.T
    )
    x, y = canvas.frame(rng, n, style)
    x = x * np.where(rng.random((n, 1, 1)) < 0.5, -1, 1)
    y = y - 0.25
    body = box(x, y, length, height)
    rise = (-height - y) / np.maximum(cabin, 0.05)
    within = np.maximum(start + front * rise - x, x - end + back * rise)
    roof = inside(np.maximum(np.maximum(within, -height - cabin - y), y + height - 0.05))
    glass = inside(np.maximum(np.maximum(within + 0.12, -height - cabin + 0.1 - y), y + height + 0.03))
    wheels = disc(np.abs(x) - 0.58 * length, y - height, wheel)
    far, paintwork = canvas.contrasting(rng, n)
    image = canvas.backdrop(rng, far, style)
    image = paint(image, np.maximum(body, roof), paintwork)
    if name != "lorry":
        image = paint(image, glass, (150, 185, 205))
    return paint(image, wheels, (15, 15, 15))
