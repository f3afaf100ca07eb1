"""CLIP's encoders with prompts as public code computes them: what speed is measured against.

Length first, ``nn.MultiheadAttention``, all positions of every text of full context length, all
classes in one batch, prompts written over what stands at their place in front of every block.
Float32 and float64 only.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from clip.layers import ResidualAttentionBlock
from clip.model import CLIP, VisionTransformer
from clip.packing import PackedText
from clip.prompting import LayerPrompts, Prompt, by_layer


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class PlainBlock(nn.Module):
    """OpenAI's residual attention block around the weights of one of ours.

    Args:
        block: its weights are shared.
        mask: ``(length, length)`` added to the attention scores, or ``None``.
    """

    def __init__(self, block: ResidualAttentionBlock, mask: Tensor | None) -> None:
        super().__init__()
        width, hidden = block.mlp.c_fc.in_features, block.mlp.c_fc.out_features
        with torch.device("meta"):
            self.attn = nn.MultiheadAttention(width, block.attn.heads)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(
                OrderedDict(
                    c_fc=nn.Linear(width, hidden),
                    gelu=nn.GELU() if isinstance(block.mlp.gelu, nn.GELU) else QuickGELU(),
                    c_proj=nn.Linear(hidden, width),
                )
            )
        self.load_state_dict(block.state_dict(), assign=True)
        self.requires_grad_(False)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """``(length, N, d)`` to the same shape."""
        mask = None if self.mask is None else self.mask[: len(x), : len(x)]
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class PlainEncoders:
    """Both encoders of a CLIP, called as ``CLIP.encode_text`` and ``CLIP.encode_image`` are.

    Args:
        clip: its weights are shared; a ResNet keeps its own image encoder.
    """

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        length, table = clip.context_length, clip.positional_embedding
        mask = torch.full((length, length), float("-inf"), dtype=table.dtype).triu(1)
        self.text_blocks = [PlainBlock(block, mask) for block in clip.transformer.resblocks]
        self.image_blocks = (
            [PlainBlock(block, None) for block in clip.visual.transformer.resblocks]
            if isinstance(clip.visual, VisionTransformer)
            else []
        )

    def encode_text(self, text: Tensor | PackedText, prompts: LayerPrompts | None = None) -> Tensor:
        """Features ``(C, embed_dim)``, or ``(B, C, embed_dim)``: one sample after the other."""
        layers = by_layer(prompts, len(self.text_blocks))
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
        clip = self.clip
        ids = text.ids if isinstance(text, PackedText) else text
        ids = nn.functional.pad(ids, (0, clip.context_length - ids.shape[1]))
        x, end = clip.token_embedding(ids).transpose(0, 1), ids.argmax(dim=-1)
        for i, block in enumerate(self.text_blocks):
            for prompt in layers[i]:
                x, end = _insert(x, prompt), end + prompt.length - prompt.drop
            if i == 0:
                x = x[: clip.context_length]
                x = x + clip.positional_embedding[: len(x), None]
            x = block(x)
        x = clip.ln_final(x.transpose(0, 1))
        return x[torch.arange(len(x)), end] @ clip.text_projection

    def encode_image(self, image: Tensor, prompts: LayerPrompts | None = None) -> Tensor:
        """Features ``(N, embed_dim)`` of normalised images."""
        tower = self.clip.visual
        if not self.image_blocks:
            return tower(image)
        layers = by_layer(prompts, len(self.image_blocks))
        x = tower.conv1(image).flatten(2).permute(2, 0, 1)
        x = torch.cat([tower.class_embedding.expand(1, x.shape[1], -1), x])
        x = x + tower.positional_embedding[:, None]
        for i, block in enumerate(self.image_blocks):
            for prompt in layers[i]:
                x = _insert(x, prompt)
            x = block(tower.ln_pre(x) if i == 0 else x)
        return tower.ln_post(x[0]) @ tower.proj


def use_plain_encoders(clip: CLIP) -> None:
    """Make a CLIP's ``encode_text`` and ``encode_image`` the plain ones."""
    plain = PlainEncoders(clip)
    clip.encode_text, clip.encode_image = plain.encode_text, plain.encode_image


def _of_sample(prompt: Prompt, sample: int) -> Prompt:
    tokens = prompt.tokens
    return replace(prompt, tokens=tokens[sample]) if tokens.dim() == 4 else prompt


def _insert(x: Tensor, prompt: Prompt) -> Tensor:
    """``(length, N, d)`` with the tokens of a prompt in it."""
    tokens = prompt.tokens if prompt.tokens.dim() == 3 else prompt.tokens[None]
    tokens = tokens.expand(x.shape[1], -1, -1).transpose(0, 1)
    if isinstance(prompt.at, tuple):
        rows = [_between(x[:, c], tokens[:, c], at, prompt.drop) for c, at in enumerate(prompt.at)]
        return torch.stack(rows, dim=1)
    return _between(
        x, tokens, len(x) - prompt.drop if prompt.at is None else prompt.at, prompt.drop
    )


def _between(x: Tensor, tokens: Tensor, at: int, drop: int) -> Tensor:
    return torch.cat([x[:at], tokens, x[at + drop :]])
