"""The plain computation that all encoders, ``clip.plain``'s too, are checked against.

Full context length, every position of every block, one Python loop over classes; attention written
out. It reads the weights of a model and shares no code with its forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip.changes import BlockChange, Changes, LayerChanges, LowRank
from clip.model import CLIP


def norm(layer, x: Tensor, other: tuple[Tensor, Tensor] | None = None) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    weight, bias = other or (layer.weight, layer.bias)
    return (x - mean) / (var + layer.eps).sqrt() * weight + bias


def linear(x: Tensor, weight: Tensor, bias: Tensor, term: LowRank | None) -> Tensor:
    """A linear map with a low-rank term merged into its weight."""
    return x @ (weight if term is None else weight + term.scale * term.up @ term.down).T + bias


def block(layer, x: Tensor, causal: bool, change: BlockChange) -> Tensor:
    """One pre-norm block on one sequence ``(length, d)``."""
    length, width = x.shape
    heads = layer.attn.num_heads
    normed = norm(layer.ln_1, x, change.ln_1)
    maps = zip(
        layer.attn.in_proj_weight.split(width), layer.attn.in_proj_bias.split(width), strict=True
    )
    q, k, v = (
        linear(normed, *one, term).reshape(length, heads, -1).transpose(0, 1)
        for one, term in zip(maps, (change.query, change.key, change.value), strict=True)
    )
    scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
    if causal:
        scores = scores + torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width)
    out = layer.attn.out_proj
    x = x + linear(y, out.weight, out.bias, change.out)
    hidden = norm(layer.ln_2, x, change.ln_2) @ layer.mlp.c_fc.weight.T + layer.mlp.c_fc.bias
    if isinstance(layer.mlp.gelu, torch.nn.GELU):
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    else:
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    y = x + hidden @ layer.mlp.c_proj.weight.T + layer.mlp.c_proj.bias
    return y if change.branch is None else y + change.branch(normed)


def encode_text(model: CLIP, ids: Tensor, changes: LayerChanges | None = None) -> Tensor:
    """``(C, embed_dim)``; prompts shared or per class."""
    features, changes = [], Changes.of(changes)
    for c, row in enumerate(ids):
        x, end = model.token_embedding.weight[row], int(row.argmax())
        stages = [(0, False), *((i, True) for i in range(len(model.transformer.resblocks)))]
        for i, behind in stages:
            for p in changes[i].prompts:
                if i == 0 and p.embedded != behind:
                    continue
                tokens = p.tokens[c] if p.tokens.dim() == 3 else p.tokens
                at = p.at[c] if isinstance(p.at, tuple) else p.at
                tokens = (1 - p.keep) * tokens + p.keep * x[at : at + p.drop] if p.keep else tokens
                x = torch.cat([x[:at], tokens, x[at + p.drop :]])
                end += len(tokens) - p.drop
            if not behind:
                x = x[: model.context_length] + model.positional_embedding[: len(x)]
                continue
            layer = model.transformer.resblocks[i]
            x = block(layer, x, causal=True, change=changes[i])
        features.append(norm(model.ln_final, x)[end] @ model.text_projection)
    return torch.stack(features)


def encode_image(
    model: CLIP, images: Tensor, changes: LayerChanges | None = None, n_rows: int | None = None
) -> Tensor:
    """``(N, embed_dim)`` of a ViT, or ``(N, n_rows, width)``; prompts shared or per image."""
    tower, features, changes = model.visual, [], Changes.of(changes)
    patch = tower.conv1.kernel_size[0]
    for n, image in enumerate(images):
        patches = image.unfold(1, patch, patch).unfold(2, patch, patch)
        patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * patch * patch)
        x = patches @ tower.conv1.weight.reshape(tower.conv1.out_channels, -1).T
        x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
        stages = [(0, False), *((i, True) for i in range(len(tower.transformer.resblocks)))]
        for i, behind in stages:
            for p in changes[i].prompts:
                if i == 0 and p.embedded != behind:
                    continue
                tokens = p.tokens[n] if p.tokens.dim() == 3 else p.tokens
                at = len(x) - p.drop if p.at is None else p.at
                tokens = (1 - p.keep) * tokens + p.keep * x[at : at + p.drop] if p.keep else tokens
                x = torch.cat([x[:at], tokens, x[at + p.drop :]])
            if not behind:
                x = norm(tower.ln_pre, x)
                continue
            layer = tower.transformer.resblocks[i]
            x = block(layer, x, causal=False, change=changes[i])
        rows = norm(tower.ln_post, x)
        features.append(rows[0] @ tower.proj if n_rows is None else rows[:n_rows])
    return torch.stack(features)
