"""A small random CLIP for the tests of its encoders, and what they compare features by."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from clip.model import CLIP

VOCABULARY, CONTEXT, LAYERS, WIDTH, VISION_WIDTH = 60, 24, 4, 64, 128
START, END = VOCABULARY - 2, VOCABULARY - 1


def build() -> CLIP:
    """Frozen CLIP in float64 with biases and gains that are not trivial."""
    generator = torch.Generator().manual_seed(0)
    model = CLIP(32, 32, LAYERS, VISION_WIDTH, 8, CONTEXT, VOCABULARY, WIDTH, 1, LAYERS).double()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.1 * noise
    return model.requires_grad_(False).eval()


def token_ids(rows: list[list[int]]) -> Tensor:
    ids = torch.zeros(len(rows), CONTEXT, dtype=torch.long)
    for c, row in enumerate(rows):
        ids[c, : len(row) + 2] = torch.tensor([START, *row, END])
    return ids


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def assert_same(fast: Tensor, slow: Tensor, prompts: list[Tensor]) -> None:
    """Equal features, and equal gradients of every prompt under a random linear functional."""
    assert fast.shape == slow.shape
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    weights = torch.randn(slow.shape, generator=torch.Generator().manual_seed(1)).double()
    fast_grads = torch.autograd.grad((fast * weights).sum(), prompts)
    # others may be compared with it as well
    slow_grads = torch.autograd.grad((slow * weights).sum(), prompts, retain_graph=True)
    for a, b in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


names = st.lists(
    st.lists(st.integers(1, VOCABULARY - 3), min_size=0, max_size=7), min_size=1, max_size=6
)
