"""Digits: real handwritten digits that come with scikit-learn.

Source: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, 1998, CC BY 4.0), 1797 images of 8 x 8 pixels in 17 grey levels, as
``sklearn.datasets.load_digits`` bundles them. They are enlarged to 32 x 32 pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY

from .generated import GeneratedDataset

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
N_TRAIN, N_VAL, SIDE = 30, 10, 32


@DATASET_REGISTRY.register()
class Digits(GeneratedDataset):
    """Ten classes; of each the first 30 images train, the next 10 validate, the others test."""

    dataset_dir = "digits"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        # scikit-learn takes a second to import, and only the first use needs it
        from sklearn.datasets import load_digits

        source, seen = load_digits(), Counter[int]()
        for pixels, label in zip(source.images, source.target.tolist(), strict=True):
            rank = seen[label]
            seen[label] += 1
            part = "train" if rank < N_TRAIN else "val" if rank < N_TRAIN + N_VAL else "test"
            small = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
            image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            yield part, label, f"digit {NAMES[label]}", image
