"""The plain computation that all encoders, ``clip.plain``'s too, are checked against.

Full context length, every position of every block, one Python loop over classes; attention written
out. It reads the weights of a model and shares no code with its forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip.changes import LayerPrompts, Prompt
from clip.model import CLIP


def norm(layer, x: Tensor) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias


def block(layer, x: Tensor, causal: bool) -> Tensor:
    """One pre-norm block on one sequence ``(length, d)``."""
    length, width = x.shape
    heads = layer.attn.num_heads
    qkv = norm(layer.ln_1, x) @ layer.attn.in_proj_weight.T + layer.attn.in_proj_bias
    q, k, v = (t.reshape(length, heads, -1).transpose(0, 1) for t in qkv.split(width, dim=1))
    scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
    if causal:
        scores = scores + torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width)
    x = x + y @ layer.attn.out_proj.weight.T + layer.attn.out_proj.bias
    hidden = norm(layer.ln_2, x) @ layer.mlp.c_fc.weight.T + layer.mlp.c_fc.bias
    if isinstance(layer.mlp.gelu, torch.nn.GELU):
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    else:
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    return x + hidden @ layer.mlp.c_proj.weight.T + layer.mlp.c_proj.bias


def prompts_of(prompts: LayerPrompts | None, layer: int) -> tuple[Prompt, ...]:
    entry = (prompts or {}).get(layer, ())
    return (entry,) if isinstance(entry, Prompt) else tuple(entry)


def encode_text(model: CLIP, ids: Tensor, prompts: LayerPrompts | None = None) -> Tensor:
    """``(C, embed_dim)``; prompts shared or per class."""
    features = []
    for c, row in enumerate(ids):
        x, end = model.token_embedding.weight[row], int(row.argmax())
        for i, layer in enumerate(model.transformer.resblocks):
            for p in prompts_of(prompts, i):
                tokens = p.tokens[c] if p.tokens.dim() == 3 else p.tokens
                at = p.at[c] if isinstance(p.at, tuple) else p.at
                x = torch.cat([x[:at], tokens, x[at + p.drop :]])
                end += len(tokens) - p.drop
            if i == 0:
                x = x[: model.context_length] + model.positional_embedding[: len(x)]
            x = block(layer, x, causal=True)
        features.append(norm(model.ln_final, x)[end] @ model.text_projection)
    return torch.stack(features)


def encode_image(model: CLIP, images: Tensor, prompts: LayerPrompts | None = None) -> Tensor:
    """``(N, embed_dim)`` of a ViT; prompts shared or per image."""
    tower, features = model.visual, []
    patch = tower.conv1.kernel_size[0]
    for n, image in enumerate(images):
        patches = image.unfold(1, patch, patch).unfold(2, patch, patch)
        patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * patch * patch)
        x = patches @ tower.conv1.weight.reshape(tower.conv1.out_channels, -1).T
        x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
        for i, layer in enumerate(tower.transformer.resblocks):
            for p in prompts_of(prompts, i):
                tokens = p.tokens[n] if p.tokens.dim() == 3 else p.tokens
                at = len(x) - p.drop if p.at is None else p.at
                x = torch.cat([x[:at], tokens, x[at + p.drop :]])
            if i == 0:
                x = norm(tower.ln_pre, x)
            x = block(layer, x, causal=False)
        features.append(norm(tower.ln_post, x)[0] @ tower.proj)
    return torch.stack(features)
