"""Random numbers that OpenAI's code draws while it builds a model, drawn here on demand.

The drawn weights are overwritten by those of the checkpoint, but later draws depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: whether ``clip.weights.build_model`` draws them
_wanted = False


@contextmanager
def initial_draws(wanted: bool) -> Iterator[None]:
    """Have models that are built in this context draw what OpenAI's code draws, or nothing.

    With the draws, later random numbers (start values, the order of images) are those that follow
    OpenAI's code at the same seed.
    """
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def draw_if_wanted(sizes: Mapping[str, Any]) -> None:
    """Advance PyTorch's CPU generator as OpenAI's constructor does, in ``initial_draws(True)``.

    Only how far it advances matters, which depends on the sizes of the tensors that are filled,
    not on their order.

    Args:
        sizes: constructor arguments of :class:`~clip.model.CLIP`.
    """
    if not _wanted:
        return
    width = sizes["transformer_width"]
    if isinstance(sizes["vision_layers"], int):
        _draw_vit(sizes)
    else:
        _draw_resnet(sizes)
    for _ in range(sizes["transformer_layers"]):
        block = _draw_block(width, sizes["transformer_heads"], sizes["transformer_mlp_width"])
        # drawn once more, as for training from scratch
        for weight in block:
            nn.init.normal_(weight)
    nn.init.normal_(nn.Embedding(sizes["vocab_size"], width).weight)
    torch.randn(sizes["context_length"], width)
    torch.randn(width, sizes["embed_dim"])


def _draw_block(width: int, heads: int, mlp_width: int | None) -> list[torch.Tensor]:
    attention = nn.MultiheadAttention(width, heads)
    hidden = mlp_width or 4 * width
    c_fc, c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
    return [attention.in_proj_weight, attention.out_proj.weight, c_fc.weight, c_proj.weight]


def _draw_vit(sizes: Mapping[str, Any]) -> None:
    width, patch = sizes["vision_width"], sizes["vision_patch_size"]
    nn.Conv2d(3, width, patch, bias=False)
    torch.randn(width)  # class token
    torch.randn((sizes["image_resolution"] // patch) ** 2 + 1, width)
    for _ in range(sizes["vision_layers"]):
        _draw_block(width, sizes["vision_heads"], sizes["vision_mlp_width"])
    torch.randn(width, sizes["embed_dim"])


def _draw_resnet(sizes: Mapping[str, Any]) -> None:
    width = sizes["vision_width"]
    for inputs, outputs in ((3, width // 2), (width // 2, width // 2), (width // 2, width)):
        nn.Conv2d(inputs, outputs, 3, bias=False)
    inputs = width
    for stage, blocks in enumerate(sizes["vision_layers"]):
        planes = width * 2**stage
        for block in range(blocks):
            nn.Conv2d(inputs, planes, 1, bias=False)
            nn.Conv2d(planes, planes, 3, bias=False)
            nn.Conv2d(planes, 4 * planes, 1, bias=False)
            if block == 0:
                nn.Conv2d(inputs, 4 * planes, 1, bias=False)
            inputs = 4 * planes
    torch.randn((sizes["image_resolution"] // 32) ** 2 + 1, inputs)
    for outputs in (inputs, inputs, inputs, sizes["embed_dim"]):
        # drawn once more, as for training from scratch
        nn.init.normal_(nn.Linear(inputs, outputs).weight)
