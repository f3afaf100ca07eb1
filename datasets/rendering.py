"""Drawing primitives of the pre-training images and of the rendered data sets.

Outlines are polygons around the origin with radius one, y pointing down. Masks are drawn three
times larger and then reduced, so that edges are smooth; everything is drawn from the generator that
is passed in, so that one seed gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

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

#: font of matplotlib's that has all SYMBOLS
SYMBOL_FONT = "DejaVuSans.ttf"
#: everyday name -> its character, in alphabetical order
SYMBOLS: dict[str, int] = {
    "airplane": 0x2708,
    "alembic": 0x2697,
    "ampersand": 0x0026,
    "anchor": 0x2693,
    "angel": 0x1F607,
    "ankh": 0x2625,
    "atom": 0x269B,
    "beamed notes": 0x266B,
    "biohazard sign": 0x2623,
    "bow tie": 0x22C8,
    "cat": 0x1F431,
    "check mark": 0x2714,
    "checkbox": 0x2611,
    "chess bishop": 0x265D,
    "chess king": 0x265A,
    "chess knight": 0x265E,
    "chess pawn": 0x265F,
    "chess queen": 0x265B,
    "chess rook": 0x265C,
    "cloud": 0x2601,
    "club": 0x2663,
    "coffin": 0x26B0,
    "comet": 0x2604,
    "cow": 0x1F42E,
    "crossed swords": 0x2694,
    "cup of coffee": 0x2615,
    "devil": 0x1F608,
    "dollar sign": 0x0024,
    "envelope": 0x2709,
    "euro sign": 0x20AC,
    "exclamation mark": 0x2762,
    "face mask": 0x1F637,
    "female sign": 0x2640,
    "flag": 0x2691,
    "flat sign": 0x266D,
    "flower": 0x273F,
    "frowning face": 0x2639,
    "gear": 0x2699,
    "hammer and pick": 0x2692,
    "house": 0x2302,
    "infinity sign": 0x221E,
    "keyboard": 0x2328,
    "lily": 0x269C,
    "male sign": 0x2642,
    "monkey": 0x1F435,
    "moon": 0x263D,
    "mouse": 0x1F42D,
    "peace sign": 0x262E,
    "pen": 0x2712,
    "pencil": 0x270F,
    "percent sign": 0x0025,
    "pointing hand": 0x261E,
    "quarter note": 0x2669,
    "question mark": 0x003F,
    "radioactive sign": 0x2622,
    "recycling sign": 0x267B,
    "return key": 0x23CE,
    "scales": 0x2696,
    "scissors": 0x2702,
    "shamrock": 0x2618,
    "sharp sign": 0x266F,
    "ship wheel": 0x2638,
    "skull": 0x2620,
    "smiling face": 0x263A,
    "snake staff": 0x2695,
    "snowflake": 0x2744,
    "snowman": 0x2603,
    "spade": 0x2660,
    "sun": 0x2600,
    "sunglasses": 0x1F60E,
    "telephone": 0x260E,
    "trident": 0x2646,
    "umbrella": 0x2602,
    "urn": 0x26B1,
    "victory hand": 0x270C,
    "warning sign": 0x26A0,
    "wedding rings": 0x26AD,
    "wheelchair": 0x267F,
    "writing hand": 0x270D,
    "yin yang": 0x262F,
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


#: side of the square that a character is first drawn into, and its size there
_SHEET, _POINTS = 192, 84


@lru_cache
def _font(file: str) -> ImageFont.FreeTypeFont:
    import matplotlib  # takes a moment, and only the first use of a data set needs it

    path = Path(__file__).parent / "fonts" / file  # one that matplotlib lacks before 3.11
    if not path.exists():
        path = Path(matplotlib.get_data_path(), "fonts", "ttf", file)
    # the basic layout engine: the other one depends on a library of the system
    return ImageFont.truetype(str(path), _POINTS, layout_engine=ImageFont.Layout.BASIC)


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


def glyph_mask(
    text: str,
    file: str,
    centre: tuple[float, float],
    radius: float,
    angle: float = 0.0,
    shear: float = 0.0,
    stretch: float = 1.0,
    stroke: int = 0,
    hollow: int = 0,
    wave: tuple[float, ...] = (),
) -> Image.Image:
    """Return the mask of a character, ``CANVAS`` pixels square.

    Args:
        text: the character.
        file: of one of the fonts that matplotlib brings.
        centre, radius: as shares of the image's side; the radius is half the longer side of the
            character before it is sheared and stretched.
        angle: rotation in radians.
        shear: shift to the right per height.
        stretch: factor of the width.
        stroke: width added to the lines, in pixels of a character 84 points high.
        hollow: width of the outline that is left of it, odd, in such pixels; 0 leaves all.
        wave: amplitude, then period and phase along the height, and both along the width, in pixels
            of the canvas; empty for none.
    """
    font = _font(file)
    sheet = Image.new("L", (_SHEET, _SHEET))
    draw = ImageDraw.Draw(sheet)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=stroke)
    corner = ((_SHEET - left - right) / 2, (_SHEET - top - bottom) / 2)
    draw.text(corner, text, fill=255, font=font, stroke_width=stroke)
    if hollow:
        sheet = ImageChops.subtract(sheet, sheet.filter(ImageFilter.MinFilter(hollow)))
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    x, y = x - centre[0] * CANVAS, y - centre[1] * CANVAS
    if wave:
        amplitude, high, high_phase, wide, wide_phase = wave
        x, y = (
            x + amplitude * np.sin(2 * math.pi * y / high + high_phase),
            y + amplitude * np.sin(2 * math.pi * x / wide + wide_phase),
        )
    scale = max(right - left, bottom - top) / (2 * radius * CANVAS)
    u = (math.cos(angle) * x + math.sin(angle) * y) * scale
    v = (math.cos(angle) * y - math.sin(angle) * x) * scale
    return _sample(sheet, (u + shear * v) / stretch + _SHEET / 2, v + _SHEET / 2)


def _sample(image: Image.Image, x: np.ndarray, y: np.ndarray) -> Image.Image:
    """Look up grey values between pixels; outside the image they are 0."""
    pixels = np.pad(np.asarray(image, np.float32), 1)
    x = np.clip(x + 1, 0, pixels.shape[1] - 1.001)
    y = np.clip(y + 1, 0, pixels.shape[0] - 1.001)
    left, top = x.astype(int), y.astype(int)
    right, low = x - left, y - top
    upper = pixels[top, left] * (1 - right) + pixels[top, left + 1] * right
    lower = pixels[top + 1, left] * (1 - right) + pixels[top + 1, left + 1] * right
    return Image.fromarray(np.rint(upper * (1 - low) + lower * low).astype(np.uint8))


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


def texture(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a background of two colours mixed by a few waves, as in cloth or stone."""
    y, x = np.mgrid[0:RESOLUTION, 0:RESOLUTION].astype(np.float32)
    mix = np.zeros_like(x)
    for _ in range(3):
        angle, period = rng.uniform(0, math.pi), rng.uniform(4, 16)
        along = x * math.cos(angle) + y * math.sin(angle)
        mix += np.sin(2 * math.pi * along / period + rng.uniform(0, 2 * math.pi))
    share = (1 / (1 + np.exp(-2 * mix)))[..., None]
    return first + share * (second - first)


def placed(
    rng: np.random.Generator, smallest: float, largest: float
) -> tuple[tuple[float, float], float]:
    """Draw centre and radius of something that stays inside the picture, as shares of its side."""
    radius = rng.uniform(smallest, largest)
    x, y = 0.5 + rng.uniform(-1, 1, 2) * (0.49 - radius)
    return (x, y), radius


def occlude(rng: np.random.Generator, image: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Draw one or two bars across the picture, in colours other than ``rgb``."""
    for _ in range(rng.integers(1, 3)):
        mask = Image.new("L", (CANVAS, CANVAS))
        ends = rng.uniform(0, CANVAS, 4).tolist()
        width = int(rng.integers(4, 9))
        ImageDraw.Draw(mask).line(ends, fill=255, width=width)
        image = paint(image, mask, contrasting_colour(rng, rgb, 60.0))
    return image


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Round an image to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
