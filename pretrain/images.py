"""Renderer of the pre-training images and the attributes that captions may name."""

from __future__ import annotations

import string
from concurrent.futures import ProcessPoolExecutor
from enum import IntEnum

import numpy as np
from PIL import Image, ImageFilter

from datasets.rendering import (
    COLOURS,
    FILLS,
    HELD_OUT,
    OUTLINES,
    RESOLUTION,
    SYMBOL_FONT,
    SYMBOLS,
    contrasting_colour,
    fill_mask,
    glyph_mask,
    gradient,
    jittered_colour,
    outline_mask,
    paint,
    plain,
    to_bytes,
)

SHAPES = tuple(OUTLINES)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple(string.ascii_lowercase)
PICTOGRAPHS = tuple(SYMBOLS)
OBJECTS = SHAPES + DIGITS + LETTERS + PICTOGRAPHS
KINDS = ("shape", "digit", "letter", "symbol")
#: how often images of each kind are drawn
SHARES = (0.36, 0.16, 0.18, 0.30)
COLOUR_NAMES = tuple(COLOURS)
#: backgrounds are a colour, or one of these
GRADIENT, NOISY = len(COLOUR_NAMES), len(COLOUR_NAMES) + 1
SIZES = ("small", "medium", "large")
QUALITIES = ("sharp", "blurry", "pixelated")
TONES = ("normal", "dark", "bright")
#: value of an attribute that an image does not have
NONE = -1

#: (colour, shape) index pairs that are rendered
COMBINATIONS = tuple(
    (c, s)
    for c, colour in enumerate(COLOUR_NAMES)
    for s, shape in enumerate(SHAPES)
    if (colour, shape) not in HELD_OUT
)

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)


class Attribute(IntEnum):
    """Columns of the attribute table, each with its number of values in ``N_VALUES``."""

    OBJECT = 0
    KIND = 1
    COLOUR = 2
    FILL = 3
    BACKGROUND = 4
    COUNT = 5  # 1 to 4, counted from 0
    MANY = 6  # three or more
    SIZE = 7
    QUALITY = 8
    TONE = 9
    GRAYSCALE = 10


N_VALUES = (
    len(OBJECTS),
    len(KINDS),
    len(COLOUR_NAMES),
    len(FILLS),
    len(COLOUR_NAMES) + 2,
    4,
    2,
    len(SIZES),
    len(QUALITIES),
    len(TONES),
    2,
)


def _character(
    rng: np.random.Generator,
    text: str,
    fonts: tuple[str, ...],
    centre: tuple[float, float],
    radius: float,
) -> Image.Image:
    """Draw a character with random font, width of its lines, and a little turned and sheared."""
    return glyph_mask(
        text,
        fonts[rng.integers(len(fonts))],
        centre,
        radius * rng.uniform(0.92, 1.1),
        angle=rng.normal(0, 0.14),
        shear=rng.normal(0, 0.12),
        stretch=rng.uniform(0.8, 1.25),
        stroke=int(rng.integers(0, 5)),
    )


def _places(rng: np.random.Generator, count: int, radius: float) -> list[tuple[float, float]]:
    """Place the centres of ``count`` objects that do not overlap."""
    if count == 1:
        room = max(0.5 - radius, 0.0) * 0.8
        return [tuple(0.5 + rng.uniform(-room, room, 2))]
    cells = rng.permutation([(0.26, 0.26), (0.26, 0.74), (0.74, 0.26), (0.74, 0.74)])[:count]
    return [tuple(cell + rng.uniform(-0.04, 0.04, 2)) for cell in cells]


def _background(rng: np.random.Generator, rgb: np.ndarray, colour: int) -> tuple[np.ndarray, int]:
    """Draw a background that the colour ``rgb`` stands out from; return it and its attribute."""
    draw = rng.random()
    if draw < 0.5:
        while True:
            index = int(rng.integers(len(COLOUR_NAMES)))
            chosen = jittered_colour(rng, COLOUR_NAMES[index])
            if index != colour and np.linalg.norm(chosen - rgb) > 90:
                return plain(chosen), index
    first = contrasting_colour(rng, rgb)
    if draw < 0.62:
        return plain(first), NONE
    if draw < 0.8:
        return gradient(rng, first, contrasting_colour(rng, rgb)), GRADIENT
    grain = rng.normal(0, rng.uniform(20, 45), (RESOLUTION, RESOLUTION, 1 if draw < 0.9 else 3))
    return plain(first) + grain, NOISY


def _degrade(
    rng: np.random.Generator, image: np.ndarray, glyph: bool
) -> tuple[np.ndarray, dict[Attribute, int]]:
    """Blur, pixelate, darken, brighten, take the colour away, add noise; each now and then."""
    found = {Attribute.QUALITY: 0, Attribute.TONE: 0, Attribute.GRAYSCALE: 0}
    draw = rng.random()
    if draw < (0.4 if glyph else 0.25):
        picture = Image.fromarray(to_bytes(image))
        if draw < 0.12:
            found[Attribute.QUALITY] = 1
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.9, 1.5)))
        else:
            found[Attribute.QUALITY] = 2
            side = int(rng.integers(8, 13)) if glyph else int(rng.integers(11, 16))
            back = Image.Resampling.NEAREST if rng.random() < 0.3 else Image.Resampling.BICUBIC
            small = picture.resize((side, side), Image.Resampling.BOX)
            picture = small.resize(picture.size, back)
        image = np.asarray(picture, dtype=np.float32)
    draw = rng.random()
    if draw < 0.08:
        found[Attribute.TONE], image = 1, image * rng.uniform(0.3, 0.5)
    elif draw < 0.16:
        found[Attribute.TONE], image = 2, 255 - (255 - image) * rng.uniform(0.35, 0.55)
    if rng.random() < 0.1:
        found[Attribute.GRAYSCALE] = 1
        image = (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, 2)
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(2, 14), image.shape)
    return image, found


def render(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render image number ``index`` of the collection ``seed``.

    Returns:
        image ``(RESOLUTION, RESOLUTION, 3)`` uint8 and attributes ``(len(Attribute),)`` int64,
        ``NONE`` where the image lacks one.
    """
    rng = np.random.default_rng([seed, index])
    kind = int(rng.choice(len(KINDS), p=SHARES))
    many = rng.random() < (0.22 if kind == 0 else 0.06)
    count = int(rng.integers(2, 5)) if many else 1
    size = NONE if many else int(rng.choice(3, p=(0.2, 0.4, 0.4) if kind == 0 else (0.1, 0.4, 0.5)))
    radius = rng.uniform(*((0.17, 0.2), (0.16, 0.23), (0.26, 0.35), (0.38, 0.46))[size + 1])
    if kind == 0:
        colour, member = COMBINATIONS[rng.integers(len(COMBINATIONS))]
    else:
        colour = int(rng.integers(len(COLOUR_NAMES)))
        member = int(rng.integers(len((SHAPES, DIGITS, LETTERS, PICTOGRAPHS)[kind])))
    ink = kind != 0 and rng.random() < 0.35
    if ink:
        colour = COLOUR_NAMES.index("white" if rng.random() < 0.6 else "black")
    rgb = jittered_colour(rng, COLOUR_NAMES[colour])
    fill = NONE
    if ink:
        background = COLOUR_NAMES.index("black" if COLOUR_NAMES[colour] == "white" else "white")
        image = plain(jittered_colour(rng, COLOUR_NAMES[background]))
    else:
        image, background = _background(rng, rgb, colour)
    if kind == 0:
        fill = int(rng.choice(len(FILLS), p=(0.48, 0.13, 0.13, 0.13, 0.13)))
        angle, stretch = rng.normal(0, 0.17), rng.uniform(0.88, 1.14)
    for centre in _places(rng, count, radius):
        if kind == 0:
            outline = OUTLINES[SHAPES[member]]
            mask = outline_mask(outline, centre, radius, angle, stretch)
            inner = outline_mask(outline, centre, radius * 0.62, angle, stretch)
            mask = fill_mask(rng, mask, FILLS[fill], inner)
        elif kind == 1:
            mask = _character(rng, str(member), FONTS, centre, radius)
        elif kind == 2:
            mask = _character(rng, LETTERS[member].upper(), FONTS, centre, radius)
        else:
            text = chr(SYMBOLS[PICTOGRAPHS[member]])
            mask = _character(rng, text, (SYMBOL_FONT,), centre, radius)
        image = paint(image, mask, rgb)
    image, found = _degrade(rng, image, kind in (1, 2))
    offset = (0, *np.cumsum([len(SHAPES), len(DIGITS), len(LETTERS)]).tolist())[kind]
    attributes = {
        Attribute.OBJECT: offset + member,
        Attribute.KIND: kind,
        Attribute.COLOUR: NONE if found[Attribute.GRAYSCALE] else colour,
        Attribute.FILL: fill,
        Attribute.BACKGROUND: (
            NONE if found[Attribute.GRAYSCALE] and background < GRADIENT else background
        ),
        Attribute.COUNT: count - 1,
        Attribute.MANY: int(count > 2),
        Attribute.SIZE: size,
        **found,
    }
    return to_bytes(image), np.array([attributes[a] for a in Attribute])


def _render_range(seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    images, attributes = zip(*(render(seed, i) for i in range(start, stop)), strict=True)
    return np.stack(images), np.stack(attributes)


def render_collection(seed: int, n: int, workers: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Render images 0 to n - 1; the number of worker processes does not change them.

    Returns:
        images ``(n, RESOLUTION, RESOLUTION, 3)`` uint8 and attributes ``(n, len(Attribute))``.
    """
    if n < 1:
        raise ValueError(f"cannot render {n} images")
    if workers <= 1:
        return _render_range(seed, 0, n)
    bounds = np.linspace(0, n, num=min(n, workers * 8) + 1, dtype=int)
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_render_range, [seed] * (len(bounds) - 1), bounds[:-1], bounds[1:]))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
