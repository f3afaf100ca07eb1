"""CLIP's modified ResNet image tower."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Residual bottleneck that strides by average pooling instead of strided convolution."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu3 = nn.ReLU()
        self.downsample = None
        if stride > 1 or inplanes != out:
            # names as in OpenAI's checkpoints
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inplanes, out, 1, bias=False)),
                        ("1", nn.BatchNorm2d(out)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: ``(N, inplanes, H, W)`` to ``(N, 4 planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.avgpool(self.relu2(self.bn2(self.conv2(x))))
        return self.relu3(self.bn3(self.conv3(x)) + shortcut)


class AttentionPool2d(nn.Module):
    """Attention pooling whose single query is the mean over all positions.

    Args:
        side: side of the square input, in positions.
        width: channels of the input.
        heads: heads of the attention.
        output_dim: width of the output.
    """

    def __init__(self, side: int, width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)
        self.num_heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``(N, d, side, side)`` to ``(N, output_dim)``."""
        x = x.flatten(2).transpose(1, 2)  # (N, side^2, d)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # (N, 1 + side^2, d)
        x = x + self.positional_embedding.to(x.dtype)

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v)  # (N, heads, 1, d / heads)
        return self.c_proj(y.transpose(1, 2).flatten(2).squeeze(1))


class ModifiedResNet(nn.Module):
    """ResNet with a three-convolution stem, anti-aliased strides and attention pooling.

    Args:
        layers: blocks per stage, four numbers.
        output_dim: width of the joint embedding.
        heads: heads of the attention pool.
        input_resolution: side of the square input in pixels.
        width: channels of the stem's output.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    parts_warned_of: list[str]  # CLIP's

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        output_dim: int,
        heads: int,
        input_resolution: int = 224,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.output_dim, self.input_resolution = output_dim, input_resolution
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.avgpool = nn.AvgPool2d(2)
        inplanes = width
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            modules = []
            for stride in strides:
                modules.append(Bottleneck(inplanes, planes, stride))
                inplanes = planes * Bottleneck.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*modules))
        self.attnpool = AttentionPool2d(
            side=input_resolution // 32, width=width * 32, heads=heads, output_dim=output_dim
        )

    def forward(self, x: Tensor, changes: None = None, n_rows: None = None) -> Tensor:
        """Encode images ``(N, 3, side, side)`` to ``(N, output_dim)``.

        Raises:
            ValueError: prompts, other changes of blocks or rows of tokens are asked for; a ResNet
                has no sequence of tokens.
        """
        if changes or n_rows is not None:
            raise ValueError(
                "image prompts, other changes of blocks and rows of tokens need a vision "
                "transformer: choose a ViT as MODEL.BACKBONE.NAME"
            )
        x = x.to(self.conv1.weight.dtype)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu3(self.bn3(self.conv3(x))))  # (N, width, side / 4, side / 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 32 width, side / 32, ...)
        return self.attnpool(x)
