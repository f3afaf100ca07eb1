"""CLIP's encoders with prompts as public code computes them: module by module, length first.

They run a model as it stands, whatever somebody hooked, wrapped or replaced in it, with the shapes
of OpenAI's package, and are the measure of the fast ones: all positions of every text of full
context length, all classes in one batch, prompts written over what stands at their place in front
of every block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .changes import LayerPrompts, Prompt, batch_size, by_layer, splice
from .packing import PackedText, check_context, check_places, check_text_prompt
from .patched import changed_stack

if TYPE_CHECKING:
    from .model import CLIP, VisionTransformer


class PlainEncoders:
    """Both encoders of a CLIP, called as ``CLIP.encode_text`` and ``CLIP.encode_image`` are.

    Args:
        clip: its weights are shared; a ResNet keeps its own image encoder.
    """

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip

    def encode_text(self, text: Tensor | PackedText, prompts: LayerPrompts | None = None) -> Tensor:
        """Features ``(C, embed_dim)``, or ``(B, C, embed_dim)``: one sample after the other."""
        return self.clip.encode_text(text, prompts, plain=True)

    def encode_image(self, image: Tensor, prompts: LayerPrompts | None = None) -> Tensor:
        """Features ``(N, embed_dim)`` of normalised images."""
        return self.clip.encode_image(image, prompts, plain=True)


def encode_text(clip: CLIP, text: PackedText, prompts: LayerPrompts | None = None) -> Tensor:
    """What ``CLIP.encode_text`` gives; a sequence is longer than the context in no block.

    Raises:
        ValueError: as ``CLIP.encode_text``, or see ``_through``.
    """
    layers = _by_layer(prompts, clip.transformer)
    batch = batch_size(layers)
    if batch is not None:
        samples = (
            {i: [_of_sample(prompt, b) for prompt in entry] for i, entry in enumerate(layers)}
            for b in range(batch)
        )
        return torch.stack([encode_text(clip, text, sample) for sample in samples])

    ids = F.pad(text.ids, (0, clip.context_length - text.ids.shape[1]))
    x, end = clip.token_embedding(ids).to(clip.dtype), ids.argmax(dim=-1)
    lengths = text.lengths

    def enter(x: Tensor, entry: Sequence[Prompt]) -> Tensor:
        """``(C, length, d)`` to the same with prompts, of the context's length."""
        nonlocal end, lengths
        for prompt in entry:
            check_text_prompt(prompt, len(lengths))
            at = prompt.at if isinstance(prompt.at, tuple) else (prompt.at,) * len(lengths)
            check_places(prompt, at, lengths, 0)
            x, more = _insert(x, prompt), prompt.length - prompt.drop
            end, lengths = end + more, tuple(length + more for length in lengths)
        check_context(max(lengths), clip.context_length)
        # the masks are of this length; what comes behind the end is not seen
        return F.pad(x, (0, 0, 0, clip.context_length - x.shape[1]))

    x = enter(x, layers[0]) + clip.positional_embedding.to(clip.dtype)
    x = _through(clip.transformer, x, layers, enter)
    x = clip.ln_final(x).to(clip.dtype)
    return x[torch.arange(len(x), device=x.device), end] @ clip.text_projection


def encode_image(
    tower: VisionTransformer, image: Tensor, prompts: LayerPrompts | None = None
) -> Tensor:
    """What ``VisionTransformer.forward`` gives.

    Raises:
        ValueError: as there, or see ``_through``.
    """
    layers = _by_layer(prompts, tower.transformer)

    def enter(x: Tensor, entry: Sequence[Prompt]) -> Tensor:
        for prompt in entry:
            x = splice(x, prompt)
        return x

    dtype = tower.conv1.weight.dtype
    x = tower.conv1(image.to(dtype)).to(dtype).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = tower.ln_pre(enter(x + tower.positional_embedding.to(x.dtype), layers[0]))
    x = tower.ln_post(_through(tower.transformer, x, layers, enter)[:, 0])
    return x if tower.proj is None else x @ tower.proj


def _by_layer(prompts: LayerPrompts | None, transformer: nn.Module) -> list[tuple[Prompt, ...]]:
    # what somebody put in its place need not know how many blocks it has
    own = changed_stack(transformer)
    return by_layer(prompts, max(prompts or (0,)) + 1 if own else len(transformer.resblocks))


def _through(
    transformer: nn.Module,
    x: Tensor,
    layers: Sequence[tuple[Prompt, ...]],
    enter: Callable[[Tensor, Sequence[Prompt]], Tensor],
) -> Tensor:
    """Run a transformer, length first, on a sequence that holds the prompts of block 0.

    Args:
        transformer: a tower's.
        x: ``(N, length, d)``.
        layers: prompts of every block.
        enter: gives ``x`` with the prompts of one block.

    Raises:
        ValueError: prompts for later blocks of a transformer which runs them in a way of its own.
    """
    if not any(layers[1:]):
        return transformer(x.transpose(0, 1)).transpose(0, 1)
    if changed_stack(transformer):
        raise ValueError(
            "prompts in front of later blocks would pass by a transformer or a stack of blocks "
            "(resblocks) that is hooked, wrapped or replaced as a whole: hook, wrap or replace "
            "its blocks instead, or lower the prompt depth to 1"
        )
    for i, block in enumerate(transformer.resblocks):
        x = block((enter(x, layers[i]) if i else x).transpose(0, 1)).transpose(0, 1)
    return x


def _of_sample(prompt: Prompt, sample: int) -> Prompt:
    tokens = prompt.tokens
    return replace(prompt, tokens=tokens[sample]) if tokens.dim() == 4 else prompt


def _insert(x: Tensor, prompt: Prompt) -> Tensor:
    """``(C, length, d)`` with the tokens of a text prompt in it."""
    if prompt.tokens.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"prompt of width {prompt.tokens.shape[-1]} for a text encoder of {x.shape[-1]}"
        )
    tokens = prompt.tokens.to(x.dtype).expand(len(x), -1, -1)
    if isinstance(prompt.at, tuple):
        rows = [
            _between(*sequence, prompt.drop) for sequence in zip(x, tokens, prompt.at, strict=True)
        ]
        return torch.stack(rows)
    pieces = x[:, : prompt.at], tokens, x[:, prompt.at + prompt.drop :]
    return torch.cat(pieces, dim=1)


def _between(x: Tensor, tokens: Tensor, at: int, drop: int) -> Tensor:
    return torch.cat([x[:at], tokens, x[at + drop :]])
