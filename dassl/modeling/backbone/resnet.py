"""ResNets from torchvision (He et al., arXiv 1512.03385) without their classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision import models

from .build import BACKBONE_REGISTRY, Backbone


class ResNetBackbone(Backbone):
    """Features before the last layer.

    Args:
        name: name of the model in torchvision.
        pretrained: load ImageNet weights, downloading them when they are not in the cache.
    """

    def __init__(self, name: str, pretrained: bool = True) -> None:
        super().__init__()
        self.net = models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
        self._out_features = self.net.fc.in_features
        self.net.fc = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features ``(batch, out_features)`` of images ``(batch, 3, H, W)``."""
        return self.net(x)


@BACKBONE_REGISTRY.register()
def resnet18(pretrained: bool = True, **kwargs: Any) -> ResNetBackbone:
    """Return a ResNet-18 (512 features)."""
    return ResNetBackbone("resnet18", pretrained)


@BACKBONE_REGISTRY.register()
def resnet34(pretrained: bool = True, **kwargs: Any) -> ResNetBackbone:
    """Return a ResNet-34 (512 features)."""
    return ResNetBackbone("resnet34", pretrained)


@BACKBONE_REGISTRY.register()
def resnet50(pretrained: bool = True, **kwargs: Any) -> ResNetBackbone:
    """Return a ResNet-50 (2048 features)."""
    return ResNetBackbone("resnet50", pretrained)


@BACKBONE_REGISTRY.register()
def resnet101(pretrained: bool = True, **kwargs: Any) -> ResNetBackbone:
    """Return a ResNet-101 (2048 features)."""
    return ResNetBackbone("resnet101", pretrained)


@BACKBONE_REGISTRY.register()
def resnet152(pretrained: bool = True, **kwargs: Any) -> ResNetBackbone:
    """Return a ResNet-152 (2048 features)."""
    return ResNetBackbone("resnet152", pretrained)
