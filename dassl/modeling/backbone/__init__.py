"""Feature extractors; importing a module registers its extractors."""

from __future__ import annotations

from .build import BACKBONE_REGISTRY, Backbone, build_backbone
from .cnn_digitsdg import DigitsDGNet, cnn_digitsdg
from .resnet import ResNetBackbone, resnet18, resnet34, resnet50, resnet101, resnet152
from .wide_resnet import WideResNet, wide_resnet_28_2

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "DigitsDGNet",
    "ResNetBackbone",
    "WideResNet",
    "build_backbone",
    "cnn_digitsdg",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet_28_2",
]
