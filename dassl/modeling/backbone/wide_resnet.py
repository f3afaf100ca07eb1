"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146), trained from scratch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .build import BACKBONE_REGISTRY, Backbone, start_convolutions


class _WideBlock(nn.Module):
    """Two pre-activated convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.LeakyReLU(0.01))
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.01),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.before(x)
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.convolutions(active)


class WideResNet(Backbone):
    """Wide residual network with leaky ReLUs of slope 0.01.

    Args:
        depth: convolutions, 6 n + 4.
        widen_factor: the three stages have 16, 32 and 64 times as many channels.
    """

    def __init__(self, depth: int, widen_factor: int) -> None:
        super().__init__()
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False)]
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            for block in range((depth - 4) // 6):
                first = block == 0
                stride = 2 if first and stage else 1
                layers.append(_WideBlock(inputs if first else outputs, outputs, stride))
        layers += [nn.BatchNorm2d(widths[-1]), nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        start_convolutions(self)
        self._out_features = widths[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features ``(batch, out_features)`` of images ``(batch, 3, H, W)``."""
        return self.layers(x)


@BACKBONE_REGISTRY.register()
def wide_resnet_28_2(**kwargs: Any) -> WideResNet:
    """Return a wide ResNet of depth 28 and width 2 (128 features)."""
    return WideResNet(28, 2)
