"""Text encoding whose memory does not grow with the number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip.changes import LayerPrompts, Prompt, by_layer, n_samples
from clip.model import CLIP
from clip.packing import PackedText, check_text_prompt
from clip.plain import PlainEncoders


def encode_text_in_chunks(
    clip: CLIP | PlainEncoders,
    text: PackedText,
    prompts: LayerPrompts | None = None,
    size: int = 0,
) -> Tensor:
    """Text features as ``clip.encode_text`` gives them, some classes at a time.

    With gradients, a chunk keeps its result alone and is encoded once more in the backward pass
    (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). Features and
    gradients are those of the whole, to rounding.

    Args:
        clip, text, prompts: as for ``clip.encode_text``.
        size: texts encoded at once, ``B`` for every class where prompts hold one set for each of
            ``B`` samples; at least one class, 0 for all.

    Returns:
        ``(C, embed_dim)``, or ``(B, C, embed_dim)``.
    """
    layers = by_layer(prompts, max(prompts or (0,)) + 1)
    of_all = [prompt for entry in layers for prompt in entry]
    samples = n_samples(prompts)
    n_classes = max(1, size // samples)
    if not 0 < size < len(text) * samples:
        return clip.encode_text(text, prompts)
    for prompt in of_all:
        check_text_prompt(prompt, len(text))

    def encode(chunk: PackedText, its_prompts: Mapping[int, Sequence[Prompt]]) -> Tensor:
        if not torch.is_grad_enabled():
            return clip.encode_text(chunk, its_prompts)
        return checkpoint(
            clip.encode_text, chunk, its_prompts, use_reentrant=False, preserve_rng_state=False
        )

    starts = range(0, len(text), n_classes)
    return torch.cat(
        [
            encode(
                chunk,
                {
                    layer: [_of_classes(prompt, start, start + n_classes) for prompt in entry]
                    for layer, entry in enumerate(layers)
                },
            )
            for start, chunk in zip(starts, text.split(n_classes), strict=True)
        ],
        dim=-2,
    )


def _of_classes(prompt: Prompt, start: int, stop: int) -> Prompt:
    """A text prompt for some of the classes."""
    tokens, at = prompt.tokens, prompt.at
    if tokens.dim() > 2 and tokens.shape[-3] > 1:
        tokens = tokens[..., start:stop, :, :]
    return replace(prompt, tokens=tokens, at=at[start:stop] if isinstance(at, tuple) else at)
