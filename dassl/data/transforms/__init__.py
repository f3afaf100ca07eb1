"""Image transforms."""

from __future__ import annotations

from .augmentations import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from .transforms import AVAI_CHOICES, INTERPOLATION_MODES, build_plain_transform, build_transform

__all__ = [
    "AVAI_CHOICES",
    "INTERPOLATION_MODES",
    "Cutout",
    "GaussianNoise",
    "InstanceNormalization",
    "Random2DTranslation",
    "build_plain_transform",
    "build_transform",
]
