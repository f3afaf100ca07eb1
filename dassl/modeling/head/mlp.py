"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dassl.utils import check_availability

from .build import HEAD_REGISTRY

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear layers, each with optional batch norm, activation and dropout.

    Args:
        in_features: width of the input.
        hidden_layers: widths of the layers.
        activation: relu or leaky_relu.
        bn: batch norm after each linear layer.
        dropout: probability of dropping a unit; 0 adds no layer.

    Raises:
        ValueError: without layers, or for an unknown activation.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: Sequence[int] | int = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("the mlp head needs MODEL.HEAD.HIDDEN_LAYERS with one width or more")
        check_availability(activation, ACTIVATIONS)
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.mlp = nn.Sequential(*layers)
        self.out_features = in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, out_features)`` of features ``(batch, in_features)``."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Return an :class:`MLP`."""
    return MLP(**kwargs)
