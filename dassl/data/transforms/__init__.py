"""Image transforms."""

from __future__ import annotations

from .augmentations import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from .pixels import PixelCompose, split_fixed
from .transforms import (
    AVAI_CHOICES,
    INTERPOLATION_MODES,
    build_plain_transform,
    build_transform,
    image_size,
)

__all__ = [
    "AVAI_CHOICES",
    "INTERPOLATION_MODES",
    "Cutout",
    "GaussianNoise",
    "InstanceNormalization",
    "PixelCompose",
    "Random2DTranslation",
    "build_plain_transform",
    "build_transform",
    "image_size",
    "split_fixed",
]
