"""RandAugment's operations on images whose result is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.data.transforms.augmentations import OPERATIONS, RandAugment


def applied(name: str, pixels: np.ndarray, m: float = 10) -> np.ndarray:
    """One operation at a strength of RandAugment."""
    lowest, highest, operation = OPERATIONS[name]
    image = operation(Image.fromarray(pixels), lowest + m / 30 * (highest - lowest))
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("name", "grey", "expected"),
    [
        ("invert", 10, 245),
        ("posterize", 0b11111111, 0b11111000),
        ("solarize", 84, 84),
        ("solarize", 85, 170),
        ("solarize_add", 100, 136),
        ("solarize_add", 127, 163),
        ("solarize_add", 128, 128),
        ("brightness", 100, 70),
        ("color", 100, 100),
        ("contrast", 100, 100),
        ("sharpness", 100, 100),
        ("autocontrast", 100, 100),
        ("equalize", 100, 100),
    ],
)
def test_of_one_colour(name, grey, expected):
    pixels = np.full((6, 6, 3), grey, np.uint8)
    assert (applied(name, pixels) == expected).all()


@pytest.mark.parametrize(("name", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_shifts_leave_black(name, axis):
    pixels = np.full((100, 100, 3), 200, np.uint8)
    seen = set()
    for _ in range(20):
        lit = np.flatnonzero(applied(name, pixels).any(axis=(2, 1 - axis)))
        assert len(lit) == 67, "a third of 100 pixels is gone"
        seen.add(int(lit[0]))
    assert seen == {0, 33}, "either way"


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_either_direction(name):
    pixels = np.random.default_rng(0).integers(1, 256, (40, 40, 3), np.uint8)
    results = {applied(name, pixels).tobytes() for _ in range(20)}
    assert len(results) == 2
    assert all((np.frombuffer(result, int) == 0).any() for result in results)


def test_a_hole():
    pixels = np.zeros((60, 60, 3), np.uint8)
    for _ in range(20):
        found = applied("cutout", pixels)
        hole = (found == (125, 123, 114)).all(axis=2)
        assert (found[~hole] == 0).all() and 0 < hole.sum() <= 15**2


def test_every_operation_is_drawn():
    torch.manual_seed(0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    seen = {np.asarray(RandAugment(1, 10)(image)).tobytes() for _ in range(400)}
    assert len(seen) > len(OPERATIONS)
    assert np.array_equal(np.asarray(RandAugment(0, 10)(image)), np.asarray(image))


@pytest.mark.parametrize(("n", "m"), [(2, 31), (2, -1), (-1, 10)])
def test_strengths_that_cannot_be(n, m):
    cfg = get_cfg_default()
    pairs = ["INPUT.TRANSFORMS", ["randaugment"], "INPUT.RANDAUGMENT_N", n]
    cfg.merge_from_list([*pairs, "INPUT.RANDAUGMENT_M", m])
    with pytest.raises(ValueError, match="RANDAUGMENT_M"):
        build_transform(cfg)
