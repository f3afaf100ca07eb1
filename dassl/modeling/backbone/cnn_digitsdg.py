"""Network for digits of 32 x 32 pixels, trained from scratch (Zhou et al., arXiv 2003.06054)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .build import BACKBONE_REGISTRY, Backbone, start_convolutions


class DigitsDGNet(Backbone):
    """Four convolutions of 64 channels, each with ReLU and pooling.

    It takes images of 32 x 32 pixels and gives 256 features.
    """

    side = 32

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (3, 64, 64, 64):
            layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        start_convolutions(self)
        self._out_features = 64 * (self.side // 16) ** 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features ``(batch, 256)`` of images ``(batch, 3, 32, 32)``.

        Raises:
            ValueError: images of another size.
        """
        if x.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"cnn_digitsdg takes images of {self.side} x {self.side} pixels, not "
                f"{' x '.join(map(str, x.shape[-2:]))}: set INPUT.SIZE"
            )
        return self.layers(x)


@BACKBONE_REGISTRY.register()
def cnn_digitsdg(**kwargs: Any) -> DigitsDGNet:
    """Return the network for the digit images of DDAIG (256 features)."""
    return DigitsDGNet()
