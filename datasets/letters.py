"""Letters: capital letters as outlines; LowercaseLetters: small ones, for choosing settings.

Pre-training shows ten typefaces, filled; here are eight others of matplotlib's, hollow
(matplotlib before 3.11 lacks one of them, which lies in ``fonts``).

``LowercaseLetters`` are made the same way of the lower-case letters, which pre-training does not
show at all. They are there for choosing settings, so that none is chosen on what is reported.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY

from .generated import GeneratedDataset
from .rendering import contrasting_colour, glyph_mask, paint, placed, plain, to_bytes

COUNTS = {"train": 24, "val": 6, "test": 50}
SEED = 2028
FONTS = (
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
    "cmb10.ttf",
    "cmti10.ttf",
    "cmmi10.ttf",
)


def render(label: int, part: str, index: int, letters: str = string.ascii_uppercase) -> Image.Image:
    """Render an image of a letter; the same arguments give the same image.

    Args:
        label: of the letter.
        part: key of COUNTS.
        index: number of the image.
        letters: of every label.
    """
    rng = np.random.default_rng([SEED, label, tuple(COUNTS).index(part), index])
    rgb = rng.uniform(0, 255, 3)
    image = plain(contrasting_colour(rng, rgb, 130.0))
    mask = glyph_mask(
        letters[label],
        FONTS[rng.integers(len(FONTS))],
        *placed(rng, 0.36, 0.44),
        angle=rng.normal(0, 0.15),
        shear=rng.normal(0, 0.15),
        stretch=rng.uniform(0.8, 1.25),
        stroke=4,
        hollow=5,
    )
    image = paint(image, mask, rgb)
    return Image.fromarray(to_bytes(image + rng.normal(0, 6, image.shape)))


@DATASET_REGISTRY.register()
class Letters(GeneratedDataset):
    """26 classes; base classes are the first 13 letters of the alphabet."""

    dataset_dir = "letters"
    drawn = string.ascii_uppercase

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        for part, count in COUNTS.items():
            for label, letter in enumerate(string.ascii_lowercase):
                for index in range(count):
                    image = render(label, part, index, self.drawn)
                    yield part, label, f"letter {letter}", image


@DATASET_REGISTRY.register()
class LowercaseLetters(Letters):
    """The same classes as Letters, drawn in lower case, for choosing settings."""

    dataset_dir = "lowercase_letters"
    drawn = string.ascii_lowercase
