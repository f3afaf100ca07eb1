"""The plain encoders, which the fast ones are switched to and measured against."""

from __future__ import annotations

import torch

from clip.changes import Prompt
from clip.model import CLIP
from clip.packing import PackedText
from clip.plain import PlainEncoders


def test_plain_encoders_with_prompts_in_any_place():
    """In float64, with exact GELU, tokens behind the name and one set per sample."""
    torch.manual_seed(0)
    clip = CLIP(16, 32, 2, 64, 16, 12, 30, 64, 1, 2, quick_gelu=False).double()
    for parameter in clip.requires_grad_(False).parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    plain = PlainEncoders(clip)
    text = PackedText(torch.tensor([[28, 3, 29, *[0] * 9], [28, 4, 5, 6, 29, *[0] * 7]]))
    behind = Prompt(torch.randn(2, 3, 64).double(), at=(2, 4))
    per_sample = Prompt(torch.randn(3, 1, 1, 64).double(), at=1, drop=1)
    for prompts in (
        None,
        {0: behind, 1: Prompt(torch.randn(1, 64).double(), 1, 1)},
        {1: per_sample},
    ):
        torch.testing.assert_close(
            plain.encode_text(text, prompts), clip.encode_text(text, prompts)
        )
    image = torch.randn(2, 3, 32, 32).double()
    for prompts in (None, {0: Prompt(torch.randn(2, 64).double()), 1: Prompt(behind.tokens)}):
        torch.testing.assert_close(
            plain.encode_image(image, prompts), clip.encode_image(image, prompts)
        )
