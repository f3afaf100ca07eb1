"""Text encoding whose memory does not grow with the number of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip.changes import Changes, LayerChanges
from clip.encoders import Encoders
from clip.packing import PackedText, check_text_prompt


def encode_text_in_chunks(
    encoders: Encoders,
    text: PackedText,
    changes: LayerChanges | None = None,
    size: int = 0,
) -> Tensor:
    """Encode a class list as ``encoders.encode_text`` does, some classes at a time.

    With gradients, only the result of a chunk is kept, and the chunk is encoded once more in the
    backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174).
    Features and gradients equal those of one call, to rounding.

    Args:
        encoders: of the model.
        text, changes: as for ``CLIP.encode_text``.
        size: number of texts to encode at once, of which every class takes ``B`` if prompts hold
            one set for each of ``B`` samples. At least one class is encoded; 0 is no limit.

    Returns:
        ``(C, embed_dim)``, or ``(B, C, embed_dim)``.
    """
    changes = Changes.of(changes)
    samples = changes.batch_size or 1
    if not 0 < size < len(text) * samples:
        return encoders.encode_text(text, changes)
    for prompt in changes.prompts():
        check_text_prompt(prompt, len(text))

    def encode(chunk: PackedText, its_changes: Changes) -> Tensor:
        if not torch.is_grad_enabled():
            return encoders.encode_text(chunk, its_changes)
        return checkpoint(
            encoders.encode_text,
            chunk,
            its_changes,
            use_reentrant=False,
            preserve_rng_state=its_changes.random,
        )

    n_classes = max(1, size // samples)
    starts = range(0, len(text), n_classes)
    return torch.cat(
        [
            encode(chunk, changes.of_classes(start, start + n_classes))
            for start, chunk in zip(starts, text.split(n_classes), strict=True)
        ],
        dim=-2,
    )
