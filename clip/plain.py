"""CLIP's encoders with prompts as public code computes them: the measure of the fast ones.

Length first, ``nn.MultiheadAttention``, all positions of every text of full context length, all
classes in one batch, prompts written over what stands at their place in front of every block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import ResidualAttentionBlock
from .model import CLIP, VisionTransformer
from .packing import PackedText
from .prompting import LayerPrompts, Prompt, by_layer


def plain_block(block: ResidualAttentionBlock, x: Tensor, causal: bool = False) -> Tensor:
    """OpenAI's residual attention block with the weights of one of ours.

    Args:
        block: any block.
        x: ``(length, N, d)``.
        causal: whether every position sees only those up to itself.

    Returns:
        ``(length, N, d)``.
    """
    y, attn, mlp, mask = block.ln_1(x), block.attn, block.mlp, None
    if causal:
        mask = torch.full((len(x), len(x)), float("-inf"), dtype=y.dtype, device=y.device).triu(1)
    # what ``nn.MultiheadAttention`` calls
    attended, _ = F.multi_head_attention_forward(
        *(y, y, y, x.shape[-1], attn.heads, attn.in_proj_weight, attn.in_proj_bias),
        *(None, None, False, 0.0, attn.out_proj.weight, attn.out_proj.bias),
        need_weights=False,
        attn_mask=mask,
    )
    x = x + attended
    return x + mlp.c_proj(mlp.gelu(mlp.c_fc(block.ln_2(x))))


class PlainEncoders:
    """Both encoders of a CLIP, called as ``CLIP.encode_text`` and ``CLIP.encode_image`` are.

    Args:
        clip: its weights are shared; a ResNet keeps its own image encoder.
    """

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip

    def encode_text(self, text: Tensor | PackedText, prompts: LayerPrompts | None = None) -> Tensor:
        """Features ``(C, embed_dim)``, or ``(B, C, embed_dim)``: one sample after the other."""
        clip = self.clip
        blocks = clip.transformer.resblocks
        layers = by_layer(prompts, len(blocks))
        sizes = [len(p.tokens) for ps in layers for p in ps if p.tokens.dim() == 4]
        if sizes:
            return torch.stack(
                [
                    self.encode_text(
                        text, {i: [_of_sample(p, b) for p in ps] for i, ps in enumerate(layers)}
                    )
                    for b in range(sizes[0])
                ]
            )
        ids = text.ids if isinstance(text, PackedText) else text
        ids = F.pad(ids, (0, clip.context_length - ids.shape[1]))
        x, end = clip.token_embedding(ids).to(clip.dtype).transpose(0, 1), ids.argmax(dim=-1)
        for i, block in enumerate(blocks):
            for prompt in layers[i]:
                x, end = _insert(x, prompt), end + prompt.length - prompt.drop
            if i == 0:
                x = x[: clip.context_length]
                x = x + clip.positional_embedding[: len(x), None].to(x.dtype)
            x = plain_block(block, x, causal=True)
        x = clip.ln_final(x.transpose(0, 1)).to(clip.dtype)
        return x[torch.arange(len(x), device=x.device), end] @ clip.text_projection

    def encode_image(self, image: Tensor, prompts: LayerPrompts | None = None) -> Tensor:
        """Features ``(N, embed_dim)`` of normalised images."""
        tower = self.clip.visual
        if not isinstance(tower, VisionTransformer):
            return tower(image)
        blocks = tower.transformer.resblocks
        layers = by_layer(prompts, len(blocks))
        dtype = tower.conv1.weight.dtype
        x = tower.conv1(image.to(dtype)).to(dtype).flatten(2).permute(2, 0, 1)
        x = torch.cat([tower.class_embedding.to(x.dtype).expand(1, x.shape[1], -1), x])
        x = x + tower.positional_embedding[:, None].to(x.dtype)
        for i, block in enumerate(blocks):
            for prompt in layers[i]:
                x = _insert(x, prompt)
            x = plain_block(block, tower.ln_pre(x) if i == 0 else x)
        return tower.ln_post(x[0]) @ tower.proj


def _of_sample(prompt: Prompt, sample: int) -> Prompt:
    tokens = prompt.tokens
    return replace(prompt, tokens=tokens[sample]) if tokens.dim() == 4 else prompt


def _insert(x: Tensor, prompt: Prompt) -> Tensor:
    """``(length, N, d)`` with the tokens of a prompt in it."""
    tokens = prompt.tokens if prompt.tokens.dim() == 3 else prompt.tokens[None]
    tokens = tokens.to(x.dtype).expand(x.shape[1], -1, -1).transpose(0, 1)
    if isinstance(prompt.at, tuple):
        rows = [_between(x[:, c], tokens[:, c], at, prompt.drop) for c, at in enumerate(prompt.at)]
        return torch.stack(rows, dim=1)
    return _between(
        x, tokens, len(x) - prompt.drop if prompt.at is None else prompt.at, prompt.drop
    )


def _between(x: Tensor, tokens: Tensor, at: int, drop: int) -> Tensor:
    return torch.cat([x[:at], tokens, x[at + drop :]])
