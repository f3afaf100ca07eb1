"""Text features of a wide class list in training, each process of a run encoding its classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clip.changes import Changes
from clip.packing import PackedText
from dassl.utils import ranks

#: fewest classes that are shared out; docs/reliability.md has what it saves
LEAST_CLASSES = 100


def encode_text_on_ranks(
    encode: Callable[[PackedText, Changes], Tensor], text: PackedText, changes: Changes
) -> Tensor:
    """Encode a class list; in a training step that several processes share, in parts of its own.

    All processes get all features. Every part gets the gradients of all processes' losses, as far
    as each counts (``ranks.ShareOfStep``), so that mean gradients over the images come out.

    Args:
        encode: encodes classes to ``(C, embed_dim)``.
        text, changes: as for ``CLIP.encode_text``.

    Returns:
        ``(C, embed_dim)``, or ``(B, C, embed_dim)`` where prompts hold one set for each of ``B``
        samples, whose texts are this process's own in any case.
    """
    n_ranks = ranks.world_size()
    size = -(-len(text) // n_ranks)
    if (
        n_ranks == 1
        or not torch.is_grad_enabled()
        or changes.batch_size
        or not ranks.ShareOfStep.all_have_images
        or len(text) < LEAST_CLASSES
        or -(-len(text) // size) < n_ranks
    ):
        return encode(text, changes)
    start = size * ranks.rank()
    own = encode(text.split(size)[ranks.rank()], changes.of_classes(start, start + size))
    return _Gathered.apply(own, start, len(text))


class _Gathered(torch.autograd.Function):
    """Rows of all processes, each of which has a part of them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, start: int, total: int) -> Tensor:
        ctx.rows = slice(start, start + len(own))
        rows = own.new_zeros(total, *own.shape[1:])
        rows[ctx.rows] = own
        return ranks.sum_over_ranks(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        n_images = ranks.ShareOfStep.n_images
        return ranks.sum_over_ranks(gradient * n_images)[ctx.rows] / n_images, None, None
