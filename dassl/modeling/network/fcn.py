"""Image-to-image network of DDAIG (Zhou et al., arXiv 2003.06054): it perturbs its input.

Written from the paper. Upstream's variants with a spatial transformer in front (``..._stn``) are
not here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dassl.utils import init_network_weights

from .build import NETWORK_REGISTRY


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    same: dict[str, Any] = {"padding": size // 2, "padding_mode": "reflect"} if size > 1 else {}
    return [nn.Conv2d(inputs, outputs, size, **same), nn.InstanceNorm2d(outputs)]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, last = _convolution(width, width, 3), _convolution(width, width, 3)
        self.block = nn.Sequential(*first, nn.ReLU(), *last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class FCN(nn.Module):
    """Residual blocks at full resolution, fused with their mean over the image.

    Args:
        width: channels of the hidden layers.
        n_blocks: residual blocks.
    """

    def __init__(self, width: int, n_blocks: int = 3) -> None:
        super().__init__()
        blocks = [_Residual(width) for _ in range(n_blocks)]
        self.backbone = nn.Sequential(*_convolution(3, width, 3), nn.ReLU(), *blocks)
        self.gctx_fusion = nn.Sequential(*_convolution(2 * width, width, 1), nn.ReLU())
        self.regress = nn.Sequential(nn.Conv2d(width, 3, 1), nn.Tanh())

    def forward(
        self, x: torch.Tensor, lmda: float = 1.0, return_p: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Perturb images.

        Args:
            x: ``(batch, 3, H, W)``.
            lmda: factor of the perturbation.
            return_p: also return the perturbation itself, of range -1 to 1.
        """
        features = self.backbone(x)
        context = features.mean(dim=(2, 3), keepdim=True).expand_as(features)
        p = self.regress(self.gctx_fusion(torch.cat([features, context], dim=1)))
        return (x + lmda * p, p) if return_p else x + lmda * p


def _fcn(width: int) -> FCN:
    net = FCN(width)
    init_network_weights(net, init_type="normal")
    return net


@NETWORK_REGISTRY.register()
def fcn_3x32_gctx(**kwargs: Any) -> FCN:
    """Return a :class:`FCN` with 32 channels."""
    return _fcn(32)


@NETWORK_REGISTRY.register()
def fcn_3x64_gctx(**kwargs: Any) -> FCN:
    """Return a :class:`FCN` with 64 channels."""
    return _fcn(64)
