"""Drawing primitives of the pre-training images and of the Shapes data set.

Outlines are polygons around the origin with radius one, y pointing down. Masks are drawn three
times larger and then reduced, so that edges are smooth; everything is drawn from the generator that
is passed in, so that one seed gives the same bytes everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RESOLUTION = 32
OVERSAMPLING = 3
CANVAS = RESOLUTION * OVERSAMPLING

#: name -> typical RGB value
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "orange": (245, 135, 20),
    "yellow": (245, 225, 40),
    "green": (40, 170, 60),
    "cyan": (50, 210, 220),
    "blue": (40, 70, 220),
    "purple": (140, 50, 190),
    "pink": (250, 140, 190),
    "brown": (130, 80, 40),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
}
FILLS = ("solid", "striped", "dotted", "checkered", "outlined")


def _regular(corners: int, first: float = -math.pi / 2) -> np.ndarray:
    angle = first + np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star() -> np.ndarray:
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return _regular(10) * radius[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2], axis=1) / 16


def _crescent() -> np.ndarray:
    outer = np.linspace(math.radians(50), math.radians(310), 30)
    rim = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    # the inner arc ends where the outer one does
    centre, half = 0.62, math.sin(math.radians(50))
    radius = math.hypot(math.cos(math.radians(50)) - centre, half)
    reach = math.atan2(half, math.cos(math.radians(50)) - centre)
    inner = np.linspace(2 * math.pi - reach, reach, 24)
    bite = np.stack([centre + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return np.concatenate([rim, bite])


def _drop() -> np.ndarray:
    angle = np.linspace(math.radians(-25), math.radians(205), 30)
    bulb = np.stack([0.65 * np.cos(angle), 0.35 + 0.65 * np.sin(angle)], axis=1)
    return np.concatenate([bulb, [[0.0, -1.0]]])


#: name -> corners, ``(n, 2)``
OUTLINES: dict[str, np.ndarray] = {
    "circle": 0.92 * _regular(40),
    "square": 1.1 * _regular(4, -math.pi / 4),
    "triangle": _regular(3) * 1.1 + (0, 0.2),
    "star": 1.1 * _star(),
    "heart": _heart(),
    "cross": np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)]
        + [(1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    )
    / 3.0,
    "crescent": _crescent() + (0.15, 0),
    "arrow": np.array(
        [(1, 0), (0.1, -0.8), (0.1, -0.3), (-1, -0.3), (-1, 0.3), (0.1, 0.3), (0.1, 0.8)]
    ),
    "diamond": _regular(4) * (0.72, 1.1),
    "hexagon": _regular(6, 0.0),
    "drop": _drop(),
    "bolt": np.array([(0.3, -1), (-0.6, 0.15), (0, 0.15), (-0.3, 1), (0.6, -0.2), (0.05, -0.2)]),
}

_BENCHMARK_COLOURS = tuple(COLOURS)[:9]
_BENCHMARK_SHAPES = tuple(OUTLINES)[:9]


def _pairs(*shifts: int) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_BENCHMARK_COLOURS[(i + shift) % 9], shape)
        for shift in shifts
        for i, shape in enumerate(_BENCHMARK_SHAPES)
    )


#: (colour, shape) of the Shapes data set, base classes first; no pre-training image shows one.
#: Each of nine colours and nine shapes is in two base and two new classes.
HELD_OUT: tuple[tuple[str, str], ...] = _pairs(0, 4) + _pairs(2, 6)


def jittered_colour(rng: np.random.Generator, name: str, strength: float = 1.0) -> np.ndarray:
    """Draw an RGB value (0 to 255) near that of a colour; ``strength`` scales the deviation."""
    base = np.array(COLOURS[name], dtype=np.float32)
    gain = 1 + strength * rng.uniform(-0.18, 0.08)
    return np.clip(base * gain + strength * rng.normal(0, 9, 3), 0, 255)


def contrasting_colour(
    rng: np.random.Generator, rgb: np.ndarray, distance: float = 110.0
) -> np.ndarray:
    """Draw an RGB value at least ``distance`` (Euclidean) away from ``rgb``."""
    while True:
        other = rng.uniform(0, 255, 3)
        if np.linalg.norm(other - rgb) >= distance:
            return other


def outline_mask(
    outline: np.ndarray,
    centre: tuple[float, float],
    radius: float,
    angle: float = 0.0,
    stretch: float = 1.0,
) -> Image.Image:
    """Return the mask of a filled outline, ``CANVAS`` pixels square.

    Args:
        outline: ``(n, 2)`` corners.
        centre, radius: as shares of the image's side.
        angle: rotation in radians.
        stretch: factor of the width; the height is divided by it.
    """
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points = (outline * (stretch, 1 / stretch)) @ rotation * radius + centre
    mask = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(mask).polygon([tuple(p) for p in (points * CANVAS).tolist()], fill=255)
    return mask


def fill_mask(
    rng: np.random.Generator,
    mask: Image.Image,
    fill: str,
    inner: Image.Image | None = None,
    pitch: float = 1.0,
) -> Image.Image:
    """Thin out a mask: striped, dotted, checkered, or outlined.

    Args:
        mask: ``CANVAS`` pixels square.
        fill: one of ``FILLS``.
        inner: what "outlined" cuts out of the mask.
        pitch: factor of the pattern's period.
    """
    if fill == "solid":
        return mask
    if fill == "outlined" and inner is not None:
        return ImageChops.subtract(mask, inner)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS]
    phase = rng.uniform(0, CANVAS, 2)
    if fill == "striped":
        angle, period = rng.uniform(0, math.pi), rng.uniform(15, 20) * pitch
        on = (x * math.cos(angle) + y * math.sin(angle) + phase[0]) % period < 0.6 * period
    elif fill == "dotted":
        period = rng.uniform(15, 19) * pitch
        u, v = (x + phase[0]) % period - period / 2, (y + phase[1]) % period - period / 2
        on = u * u + v * v < (0.38 * period) ** 2
    else:
        cell = rng.uniform(10, 14) * pitch
        on = ((x + phase[0]) // cell + (y + phase[1]) // cell) % 2 == 0
    return ImageChops.multiply(mask, Image.fromarray((on * np.uint8(255)), "L"))


def paint(image: np.ndarray, mask: Image.Image, rgb: np.ndarray) -> np.ndarray:
    """Blend a colour into an image ``(RESOLUTION, RESOLUTION, 3)`` where the mask is set."""
    alpha = np.asarray(mask.reduce(OVERSAMPLING), dtype=np.float32)[..., None] / 255
    return image + alpha * (rgb - image)


def plain(rgb: np.ndarray) -> np.ndarray:
    """Return an even background."""
    return np.broadcast_to(np.asarray(rgb, np.float32), (RESOLUTION, RESOLUTION, 3)).copy()


def gradient(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a background that runs from one colour to another in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, RESOLUTION)
    share = 0.5 + (axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)) / 1.42
    return first + share[..., None].astype(np.float32) * (second - first)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Round an image to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
