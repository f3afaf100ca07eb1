"""Shapes: rendered coloured shapes, a domain away from those that the embedded CLIP has seen.

36 classes, each a colour and a shape that pre-training never shows together. Backgrounds are
textured, outlines are jagged, colours and light vary more, something stands in front of the object,
and there is noise: pre-training shows none of the first, second and fourth.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY

from .generated import GeneratedDataset
from .rendering import (
    FILLS,
    HELD_OUT,
    OUTLINES,
    contrasting_colour,
    fill_mask,
    jittered_colour,
    occlude,
    outline_mask,
    paint,
    texture,
    to_bytes,
)

COUNTS = {"train": 20, "val": 4, "test": 40}
SEED = 2026


def _jagged(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """Return the outline with extra corners, all of them a little out of place."""
    after = np.roll(outline, -1, axis=0)
    steps = np.linspace(0, 1, max(2, 36 // len(outline)), endpoint=False)[:, None, None]
    dense = (outline + steps * (after - outline)).transpose(1, 0, 2).reshape(-1, 2)
    return dense + rng.normal(0, 0.045, dense.shape)


def render(label: int, part: str, index: int) -> Image.Image:
    """Render an image of a class; the same arguments give the same image."""
    rng = np.random.default_rng([SEED, label, tuple(COUNTS).index(part), index])
    colour, shape = HELD_OUT[label]
    rgb = jittered_colour(rng, colour, strength=1.4)
    first = contrasting_colour(rng, rgb, 95.0)
    second = contrasting_colour(rng, rgb, 95.0)
    image = texture(rng, first, first + 0.6 * (second - first))
    radius = rng.uniform(0.24, 0.4)
    centre = tuple(0.5 + rng.uniform(-1, 1, 2) * (0.46 - radius))
    outline = _jagged(rng, OUTLINES[shape])
    angle, stretch = rng.normal(0, 0.28), rng.uniform(0.8, 1.25)
    mask = outline_mask(outline, centre, radius, angle=angle, stretch=stretch)
    inner = outline_mask(outline, centre, 0.6 * radius, angle=angle, stretch=stretch)
    fill = FILLS[rng.choice(5, p=(0.6, 0.1, 0.1, 0.1, 0.1))]
    image = paint(image, fill_mask(rng, mask, fill, inner), rgb)
    image = occlude(rng, image, rgb)
    mean = image.mean()
    image = mean + rng.uniform(0.6, 1.0) * (image - mean)  # less contrast
    image = image * rng.uniform(0.75, 1.2) + rng.normal(0, rng.uniform(8, 22), image.shape)
    return Image.fromarray(to_bytes(image))


@DATASET_REGISTRY.register()
class Shapes(GeneratedDataset):
    """36 classes of a colour and a shape; base classes are the first 18."""

    dataset_dir = "shapes"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        for part, count in COUNTS.items():
            for label, (colour, shape) in enumerate(HELD_OUT):
                for index in range(count):
                    yield part, label, f"{colour} {shape}", render(label, part, index)
