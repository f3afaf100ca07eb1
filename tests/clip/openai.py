"""OpenAI's transformer and encoders written down with PyTorch's parts, for comparison.

Length first, as in Radford et al.'s package: what code written for that package does with a model,
and blocks that have its structure and share no code with ``clip``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = (self.weight.to(dtype), self.bias.to(dtype))
        return F.layer_norm(x.to(dtype), self.normalized_shape, *weights, self.eps).to(x.dtype)


class Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = Norm(width), Norm(width)
        parts = ("c_fc", nn.Linear(width, 4 * width)), ("gelu", Activation())
        self.mlp = nn.Sequential(OrderedDict([*parts, ("c_proj", nn.Linear(4 * width, width))]))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        mask = None if self.mask is None else self.mask.to(y.dtype)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def blocks_of(transformer: nn.Module, length: int | None) -> list[Block]:
    """Blocks with the weights of a CLIP's; causal for sequences of ``length`` if that is given."""
    mask = None if length is None else torch.full((length, length), -torch.inf).triu(1)
    copies = []
    for block in transformer.resblocks:
        weight = block.ln_1.weight
        copy = Block(len(weight), len(weight) // 64, mask).to(block.mlp.c_fc.weight.dtype)
        for norm in (copy.ln_1, copy.ln_2):
            norm.to(weight.dtype)
        copy.load_state_dict(block.state_dict())
        copies.append(copy.eval())
    return copies


def encode_text(model: nn.Module, ids: Tensor) -> Tensor:
    """As public code does that walks through the modules of OpenAI's model itself."""
    dtype = model.visual.conv1.weight.dtype
    x = model.token_embedding(ids).type(dtype) + model.positional_embedding.type(dtype)
    x = x.permute(1, 0, 2)
    for block in model.transformer.resblocks:
        x = block(x)
    x = model.ln_final(x.permute(1, 0, 2)).type(dtype)
    return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ model.text_projection


def encode_image(model: nn.Module, image: Tensor) -> Tensor:
    """The same for a vision transformer."""
    tower = model.visual
    x = tower.conv1(image.type(tower.conv1.weight.dtype))
    x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
    start = tower.class_embedding.to(x.dtype) + x.new_zeros(x.shape[0], 1, x.shape[-1])
    x = torch.cat([start, x], dim=1) + tower.positional_embedding.to(x.dtype)
    x = tower.ln_pre(x).permute(1, 0, 2)
    for block in tower.transformer.resblocks:
        x = block(x)
    return tower.ln_post(x.permute(1, 0, 2)[:, 0, :]) @ tower.proj
