"""Feature extractors."""

from __future__ import annotations

from .build import BACKBONE_REGISTRY, Backbone, build_backbone
from .resnet import ResNetBackbone, resnet18, resnet50

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "ResNetBackbone",
    "build_backbone",
    "resnet18",
    "resnet50",
]
