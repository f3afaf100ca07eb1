"""Both encoders of a CLIP, in one of two ways: fast, or plain as public code computes them."""

from __future__ import annotations

from torch import Tensor

from .changes import LayerChanges
from .model import CLIP
from .packing import PackedText


class Encoders:
    """What encodes with a CLIP; the choice between fast and plain is made here, once.

    Args:
        clip: the model, whose weights are shared; a ResNet has one way to encode images.
        fast: compute packed texts and what is needed alone, or else all positions of every text of
            full context length, module by module (``clip.plain``).
    """

    def __init__(self, clip: CLIP, fast: bool = True) -> None:
        self.clip, self.fast = clip, fast

    def encode_text(self, text: Tensor | PackedText, changes: LayerChanges | None = None) -> Tensor:
        """Features ``(C, embed_dim)``, or ``(B, C, embed_dim)``; see ``CLIP.encode_text``."""
        if self.fast:
            return self.clip.encode_text(text, changes)
        return self.clip.encode_text(text, changes, plain=True)

    def encode_image(
        self, image: Tensor, changes: LayerChanges | None = None, n_rows: int | None = None
    ) -> Tensor:
        """Features ``(N, embed_dim)`` of normalised images; see ``CLIP.encode_image``."""
        return self.clip.encode_image(image, changes, plain=not self.fast, n_rows=n_rows)
