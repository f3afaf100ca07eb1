"""The choice between fast encoders of a CLIP and plain ones, which compute as public code does."""

from __future__ import annotations

from torch import Tensor

from .changes import LayerChanges
from .model import CLIP
from .packing import PackedText


class Encoders:
    """Both encoders of a CLIP, fast or plain.

    Args:
        clip: the model; a ResNet has one way to encode images.
        fast: use packed texts and compute only the positions that are needed. False computes all
            positions of every text at full context length, module by module (``clip.plain``).
    """

    def __init__(self, clip: CLIP, fast: bool = True) -> None:
        self.clip, self.fast = clip, fast

    def encode_text(self, text: Tensor | PackedText, changes: LayerChanges | None = None) -> Tensor:
        """Encode texts to ``(C, embed_dim)`` or ``(B, C, embed_dim)``: see ``CLIP.encode_text``."""
        if self.fast:
            return self.clip.encode_text(text, changes)
        return self.clip.encode_text(text, changes, plain=True)

    def encode_image(
        self, image: Tensor, changes: LayerChanges | None = None, n_rows: int | None = None
    ) -> Tensor:
        """Encode normalised images to ``(N, embed_dim)``: see ``CLIP.encode_image``."""
        return self.clip.encode_image(image, changes, plain=not self.fast, n_rows=n_rows)
