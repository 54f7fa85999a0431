"""Rooms with a few things in them, seen by a camera: images, classes, depth and normals, by ray casting.

Laid out in files as preprocessed NYUv2 is (`fusion_tinting.families.nyuv2_scenes.Scenes`).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZE = (32, 48)
"""Height and width of the images."""
FLOOR, CEILING, WALL, PICTURE, BOX, BALL, COLUMN = range(7)
"""The classes; a picture is painted on the back wall, everything else has a shape of its own."""
CLASSES = 7
THINGS = 4
UNIT = 0.25
"""Depth is in units of four meters, so that errors are of the size of NYUv2's."""
FAR = 1e6
NOISE = 0.1
"""Standard deviation of the camera's noise, which no model can see through."""
CHUNK = 100
"""Scenes rendered at a time: what fits in a processor's caches."""

Surface = tuple[np.ndarray, np.ndarray]
"""Distance (N, P) along each pixel's ray, `FAR` where it is missed, and normals (N, P, 3)."""
Hit = tuple[np.ndarray, np.ndarray, np.ndarray]
"""As `Surface`, and the class (N, P)."""


def write(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write scenes as `<folder>/{image,label,depth,normal}/<i>.npy`.

    Args:
        folder: Of a split.
        count: Number of scenes.
        rng: What they are drawn with.
    """
    for start in range(0, count, CHUNK):
        scenes = render(min(CHUNK, count - start), rng)
        for kind, values in zip(("image", "label", "depth", "normal"), scenes, strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for i, value in enumerate(values, start):
                np.save(folder / kind / f"{i}.npy", value)


def render(count: int, rng: np.random.Generator, clean: bool = False) -> tuple[np.ndarray, ...]:
    """Return images (N, H, W, 3) in [0, 1], classes (N, H, W), depth (N, H, W, 1) and normals (N, H, W, 3).

    Where the sensor saw nothing, a patch of each image, the class is -1 and depth and normals are zero.

    Args:
        count: N.
        rng: What the scenes are drawn with.
        clean: Whether they have plain colors, without patterns, shade or the camera's noise.
    """
    rays = _rays(count, rng)
    eye = np.stack([rng.uniform(-0.5, 0.5, count), rng.uniform(1.0, 1.9, count), np.zeros(count)], 1)
    hits = [*_room(eye, rays, rng), *(_thing(k, eye, rays, rng) for k in range(THINGS))]
    distance = np.stack([hit[0] for hit in hits])
    nearest = distance.argmin(0)[None]
    t, normal, label = (_pick(np.stack([hit[i] for hit in hits]), nearest) for i in range(3))
    point = eye[:, None] + t[..., None] * rays
    label = _pictures(point, label, rng)
    surface = nearest[0] + len(hits) * (label == PICTURE)
    image = _shaded(point, normal, surface, rng, clean)
    depth = UNIT * t * rays[..., 2]
    return _files(image, label, depth, normal, _blind(count, rng))


def _rays(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return directions of rays, (N, P, 3): right, up, forward; the camera looks a little down."""
    height, width = SIZE
    x, y = np.meshgrid(np.linspace(-1, 1, width) * width / height, np.linspace(1, -1, height))
    rays = np.stack([0.55 * x, 0.55 * y, np.ones(SIZE)], -1).reshape(1, -1, 3)
    pitch = rng.uniform(-0.35, 0.05, (count, 1))
    up = rays[..., 1] * np.cos(pitch) + rays[..., 2] * np.sin(pitch)
    forward = rays[..., 2] * np.cos(pitch) - rays[..., 1] * np.sin(pitch)
    rays = np.stack([np.broadcast_to(rays[..., 0], up.shape), up, forward], -1)
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)


def _room(eye: np.ndarray, rays: np.ndarray, rng: np.random.Generator) -> Iterator[Hit]:
    """Yield distance, normal and class of floor, ceiling and three walls."""
    count = len(eye)
    places = (
        (1, np.zeros(count), 1, FLOOR),
        (1, rng.uniform(2.2, 3.2, count), -1, CEILING),
        (0, rng.uniform(-3.0, -1.2, count), 1, WALL),
        (0, rng.uniform(1.2, 3.0, count), -1, WALL),
        (2, rng.uniform(2.8, 6.0, count), -1, WALL),
    )
    for axis, place, side, label in places:
        with np.errstate(divide="ignore"):
            t = (place[:, None] - eye[:, None, axis]) / rays[..., axis]
        normal = np.zeros_like(rays)
        normal[..., axis] = side
        yield np.where(t > 0, t, FAR), normal, np.full(t.shape, label)


def _thing(k: int, eye: np.ndarray, rays: np.ndarray, rng: np.random.Generator) -> Hit:
    """Cast a box, a ball or a column of each scene, of which one counts."""
    count = len(eye)
    kind = rng.integers(BOX, COLUMN + 1, count)
    size = rng.uniform(0.25, 0.7, count)
    height = size * rng.uniform(0.8, 2.0, count)
    place = np.stack([rng.uniform(-1.6, 1.6, count), np.zeros(count), rng.uniform(1.8, 4.5, count)], axis=1)
    turn = rng.uniform(0, np.pi, count)
    shapes = {
        BOX: lambda: _box(eye - place, rays, size, height, turn),
        BALL: lambda: _ball(eye - place, rays, size),
        COLUMN: lambda: _column(eye - place, rays, 0.7 * size, height),
    }
    t, normal = np.full(rays.shape[:2], FAR), np.zeros_like(rays)
    for label, cast in shapes.items():
        its_t, its_normal = cast()
        chosen = kind == label
        t[chosen], normal[chosen] = its_t[chosen], its_normal[chosen]
    t[rng.uniform(size=count) < 0.15 * k] = FAR  # fewer things in some scenes
    return t, normal, np.broadcast_to(kind[:, None], t.shape)


def _ball(eye: np.ndarray, rays: np.ndarray, radius: np.ndarray) -> Surface:
    center = eye - np.stack([np.zeros_like(radius), radius, np.zeros_like(radius)], 1)
    b = (rays * center[:, None]).sum(-1)
    root = b**2 - (center**2).sum(-1)[:, None] + radius[:, None] ** 2
    t = np.where(root > 0, -b - np.sqrt(root.clip(min=0)), FAR)
    t = np.where(t > 0, t, FAR)
    return t, (center[:, None] + t[..., None] * rays) / radius[:, None, None]


def _column(eye: np.ndarray, rays: np.ndarray, radius: np.ndarray, height: np.ndarray) -> Surface:
    flat = rays[..., [0, 2]]
    a = (flat**2).sum(-1)
    b = (flat * eye[:, None, [0, 2]]).sum(-1) / a
    root = b**2 - ((eye[:, [0, 2]] ** 2).sum(-1)[:, None] - radius[:, None] ** 2) / a
    t = -b - np.sqrt(root.clip(min=0))
    y = eye[:, 1, None] + t * rays[..., 1]
    side = (root > 0) & (t > 0) & (y < height[:, None]) & (y > 0)
    with np.errstate(divide="ignore"):
        top = (height[:, None] - eye[:, 1, None]) / rays[..., 1]
    spot = eye[:, None, [0, 2]] + top[..., None] * flat
    lid = (top > 0) & ((spot**2).sum(-1) < radius[:, None] ** 2)
    t = np.where(side, t, np.where(lid, top, FAR))
    around = (eye[:, None] + t[..., None] * rays) / radius[:, None, None] * np.array([1, 0, 1])
    return t, np.where(side[..., None], around, np.array([0.0, 1.0, 0.0]))


def _box(
    eye: np.ndarray, rays: np.ndarray, size: np.ndarray, height: np.ndarray, turn: np.ndarray
) -> Surface:
    eye, rays = _turned(eye, -turn), _turned(rays, -turn)
    low = np.stack([-size, np.zeros_like(size), -size], 1)[:, None] * [0.7, 1, 0.7]
    high = np.stack([size, height, size], 1)[:, None] * [0.7, 1, 0.7]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (low - eye[:, None]) / rays, (high - eye[:, None]) / rays
    near, far = np.minimum(one, two), np.maximum(one, two)
    t, axis = near.max(-1), near.argmax(-1)
    hit = (t < far.min(-1)) & (t > 0)
    normal = -np.sign(rays) * (np.arange(3) == axis[..., None])
    return np.where(hit, t, FAR), _turned(normal, turn)


def _turned(vectors: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return vectors (N, ..., 3) turned about the vertical axis."""
    angle = angle.reshape(-1, *[1] * (vectors.ndim - 2))
    x, y, z = np.moveaxis(vectors, -1, 0)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x - sin * z, y, sin * x + cos * z], -1)


def _pictures(point: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hang a picture on the walls, at eye height."""
    count = len(point)
    x, y = rng.uniform(-1.5, 1.5, (count, 1)), rng.uniform(1.2, 1.9, (count, 1))
    width, height = rng.uniform(0.3, 0.8, (count, 1)), rng.uniform(0.2, 0.5, (count, 1))
    inside = (np.abs(point[..., 0] - x) < width) & (np.abs(point[..., 1] - y) < height)
    return np.where(inside & (label == WALL), PICTURE, label)


def _shaded(
    point: np.ndarray, normal: np.ndarray, surface: np.ndarray, rng: np.random.Generator, clean: bool
) -> np.ndarray:
    """Return colors (N, P, 3): of the surface, patterned, lit by a lamp, with the camera's noise."""
    count = len(point)
    colors = rng.uniform(0.15, 0.95, (count, 2 * (5 + THINGS), 3))
    color = np.take_along_axis(colors, surface[..., None], axis=1)
    if clean:
        return color
    waves = rng.uniform(2, 9, (count, 1, 3)) * rng.choice([-1, 1], (count, 1, 3))
    phase = (point * waves).sum(-1) + surface
    color = color * (1 + 0.25 * np.sign(np.sin(phase))[..., None] * rng.uniform(0, 1, (count, 1, 1)))
    lamp = np.stack([rng.uniform(-1, 1, count), rng.uniform(1.8, 2.2, count), rng.uniform(0, 3, count)], 1)
    towards = lamp[:, None] - point
    far = np.linalg.norm(towards, axis=-1, keepdims=True).clip(min=0.3)
    facing = (towards / far * normal).sum(-1, keepdims=True).clip(min=0)
    light = rng.uniform(0.25, 0.5, (count, 1, 1)) + facing / (0.5 + 0.15 * far**2)
    return color * light + rng.normal(0, NOISE, color.shape)


def _blind(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return where the sensor saw nothing: (N, P), a patch of each image."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width].reshape(2, 1, -1)
    top, left = rng.integers(0, height - 6, (count, 1)), rng.integers(0, width - 8, (count, 1))
    return (y >= top) & (y < top + 6) & (x >= left) & (x < left + 8)


def _files(
    image: np.ndarray, label: np.ndarray, depth: np.ndarray, normal: np.ndarray, blind: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the arrays as files hold them, with nothing where the sensor saw nothing."""
    shape = (len(image), *SIZE)
    label, depth = np.where(blind, -1, label), np.where(blind, 0, depth)
    normal = np.where(blind[..., None], 0, normal)
    values = (image.clip(0, 1), label, depth[..., None], normal)
    types = (np.float32, np.int8, np.float32, np.float32)
    return tuple(
        value.reshape(*shape, *value.shape[2:]).astype(dtype)
        for value, dtype in zip(values, types, strict=True)
    )


def _pick(stacked: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return of every pixel what the nearest surface has; `stacked` is (surfaces, N, P, ...)."""
    index = nearest.reshape(*nearest.shape, *[1] * (stacked.ndim - nearest.ndim))
    return np.take_along_axis(stacked, index, axis=0)[0]
