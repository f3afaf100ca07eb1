"""Symbols: pictographs in dots, with everyday names; variants V2, Sketch, A, R like ImageNet's.

The pictographs are those of the DejaVu Sans font that matplotlib brings. Pre-training shows plain
renderings of all of them. Here they are printed as a screen of dots, dark on light paper. The
variants are for tests only:

* ``SymbolsV2`` (ImageNetV2): new images made the same way;
* ``SymbolsSketch`` (ImageNet-Sketch): outlines in pencil on paper;
* ``SymbolsA`` (ImageNet-A): of further images those that the embedded CLIP gets wrong, half the
  classes, chosen by ``python -m pretrain.hard_images``;
* ``SymbolsR`` (ImageNet-R): other renditions (neon, stamp, mosaic, embroidery, shadow), half the
  classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from dassl.data.datasets import DATASET_REGISTRY

from .generated import GeneratedDataset, GeneratedVariant
from .rendering import (
    CANVAS,
    RESOLUTION,
    SYMBOL_FONT,
    SYMBOLS,
    contrasting_colour,
    fill_mask,
    glyph_mask,
    gradient,
    paint,
    placed,
    plain,
    to_bytes,
)

COUNTS = {"train": 20, "val": 4, "test": 25}
SEED = 2029
#: parts that are not in COUNTS, for random streams of their own
V2, SKETCH, HARD, RENDITION = range(10, 14)
NAMES = tuple(SYMBOLS)
#: which candidates SymbolsA holds: class name -> numbers
HARD_IMAGES = Path(__file__).parent / "symbols_a.json"
#: pixels from dot to dot
SCREEN = 3
RENDITIONS = ("neon", "stamp", "mosaic", "embroidery", "shadow")


def render(label: int, part: int, index: int) -> Image.Image:
    """Render an image of a symbol; the same arguments give the same image.

    Args:
        label: of the symbol.
        part: place in COUNTS, or a number of a variant.
        index: number of the image.
    """
    rng = np.random.default_rng([SEED, label, part, index])
    ink, paper = np.full(3, rng.uniform(0, 60)), np.full(3, rng.uniform(200, 255))
    mask = glyph_mask(
        chr(SYMBOLS[NAMES[label]]),
        SYMBOL_FONT,
        *placed(rng, 0.38, 0.45),
        angle=rng.normal(0, 0.12),
        shear=rng.normal(0, 0.15),
        stretch=rng.uniform(0.8, 1.25),
        stroke=int(rng.integers(1, 4)),
    )
    image = paint(plain(paper), mask, ink)
    image = np.where(gaps(*rng.integers(0, SCREEN, 2)), paper, image)
    return Image.fromarray(to_bytes(image + rng.normal(0, 6, image.shape)))


def gaps(x: int, y: int) -> np.ndarray:
    """Return where a screen of dots leaves the paper free, ``(RESOLUTION, RESOLUTION, 1)``.

    Args:
        x, y: column and row of the first gap.
    """
    free = np.arange(RESOLUTION) % SCREEN
    return ((free == y)[:, None] | (free == x)[None])[..., None]


def sketch(label: int, index: int) -> Image.Image:
    """Render a symbol as two strokes of a pencil around it."""
    rng = np.random.default_rng([SEED, label, SKETCH, index])
    image = plain(np.full(3, rng.uniform(225, 255)))
    ink, (centre, radius) = np.full(3, rng.uniform(0, 90)), placed(rng, 0.36, 0.46)
    angle, stretch, stroke = rng.normal(0, 0.15), rng.uniform(0.85, 1.2), int(rng.integers(3, 6))
    for _ in range(2):
        near = tuple(np.array(centre) + rng.normal(0, 0.01, 2))
        mask = glyph_mask(
            chr(SYMBOLS[NAMES[label]]),
            SYMBOL_FONT,
            near,
            radius,
            angle=angle + rng.normal(0, 0.03),
            stretch=stretch,
            stroke=stroke,
            hollow=5,
            wave=(rng.uniform(0.5, 2), *rng.uniform((28, 0, 28, 0), (55, 6, 55, 6))),
        )
        image = paint(image, mask, ink)
    return Image.fromarray(to_bytes(image + rng.normal(0, 4, image.shape)))


def rendition(label: int, index: int) -> Image.Image:
    """Render a symbol in one of RENDITIONS, in turn."""
    rng = np.random.default_rng([SEED, label, RENDITION, index])
    kind, text = RENDITIONS[index % len(RENDITIONS)], chr(SYMBOLS[NAMES[label]])
    place = placed(rng, 0.36, 0.46)
    angle, stretch = rng.normal(0, 0.12), rng.uniform(0.85, 1.2)

    def drawn(stroke: int, hollow: int = 0) -> Image.Image:
        return glyph_mask(
            text, SYMBOL_FONT, *place, angle=angle, stretch=stretch, stroke=stroke, hollow=hollow
        )

    rgb = rng.uniform(0, 255, 3)
    ground = contrasting_colour(rng, rgb, 150.0)
    mask = drawn(int(rng.integers(0, 3)))
    if kind == "neon":
        line = drawn(4, hollow=5)
        image = plain(rng.uniform(0, 40, 3))
        glow = rgb / rgb.max() * 255
        image = paint(image, line.filter(ImageFilter.GaussianBlur(4)), glow)
        image = paint(image, line, np.minimum(glow + 90, 255))
    elif kind == "stamp":
        around = Image.new("L", (CANVAS, CANVAS))
        around.paste(255, (4, 4, CANVAS - 4, CANVAS - 4))
        image = paint(plain(ground), ImageChops.subtract(around, mask), rgb)
        worn = rng.random((RESOLUTION, RESOLUTION, 1)) < 0.08
        image = np.where(worn, ground, image)
    elif kind == "mosaic":
        image = paint(gradient(rng, ground, contrasting_colour(rng, rgb, 130.0)), mask, rgb)
        tiles = image.reshape(RESOLUTION // 2, 2, RESOLUTION // 2, 2, 3).mean(axis=(1, 3))
        tiles = tiles + rng.normal(0, 18, tiles.shape)
        image = tiles.repeat(2, axis=0).repeat(2, axis=1)
    elif kind == "embroidery":
        image = paint(plain(ground), fill_mask(rng, mask, "checkered", pitch=0.3), rgb)
        image = image + 14 * ((np.arange(RESOLUTION) % 2)[:, None, None] - 0.5)
    else:
        image = plain(ground)
        behind = ImageChops.offset(mask, 7, 7)
        image = paint(paint(image, behind, ground * 0.4), mask, rgb)
    return Image.fromarray(to_bytes(image))


@DATASET_REGISTRY.register()
class Symbols(GeneratedDataset):
    """80 classes in alphabetical order; base classes are the first 40."""

    dataset_dir = "symbols"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        for number, (part, count) in enumerate(COUNTS.items()):
            for label, name in enumerate(NAMES):
                for index in range(count):
                    yield part, label, name, render(label, number, index)


def _rendered(
    labels: range, count: int, make: Callable[[int, int], Image.Image]
) -> Iterator[tuple[str, int, str, Image.Image]]:
    for number, label in enumerate(labels):
        for index in range(count):
            yield "test", number, NAMES[label], make(label, index)


@DATASET_REGISTRY.register()
class SymbolsV2(GeneratedVariant):
    """New images of all classes."""

    dataset_dir = "symbols_v2"
    tests_of = "Symbols"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        return _rendered(range(len(NAMES)), 20, lambda label, index: render(label, V2, index))


@DATASET_REGISTRY.register()
class SymbolsSketch(GeneratedVariant):
    """Outlines of all classes."""

    dataset_dir = "symbols_sketch"
    tests_of = "Symbols"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        return _rendered(range(len(NAMES)), 20, sketch)


@DATASET_REGISTRY.register()
class SymbolsA(GeneratedVariant):
    """Images that are hard for zero-shot CLIP; labels count the classes of the list."""

    dataset_dir = "symbols_a"
    tests_of = "Symbols"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        chosen = json.loads(HARD_IMAGES.read_text("utf-8"))
        for number, (name, indices) in enumerate(chosen.items()):
            for index in indices:
                yield "test", number, name, render(NAMES.index(name), HARD, index)


@DATASET_REGISTRY.register()
class SymbolsR(GeneratedVariant):
    """Renditions of every second class; labels count these classes only."""

    dataset_dir = "symbols_r"
    tests_of = "Symbols"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        return _rendered(range(0, len(NAMES), 2), 30, rendition)
