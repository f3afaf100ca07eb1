"""Mixup (Zhang et al., arXiv 1710.09412) of two batches."""

from __future__ import annotations

import torch

__all__ = ["mixup"]


def mixup(
    x1: torch.Tensor,
    x2: torch.Tensor,
    y1: torch.Tensor,
    y2: torch.Tensor,
    beta: float,
    preserve_order: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the images and the labels of two batches, pair by pair.

    Args:
        x1, x2: images ``(batch, C, H, W)``.
        y1, y2: label distributions ``(batch, n_cls)``.
        beta: both parameters of the Beta distribution that each pair's weight is drawn from.
        preserve_order: give the first batch the larger share (MixMatch, arXiv 1905.02249).

    Returns:
        Mixed images and mixed labels, in the shapes of the inputs.
    """
    share = torch.distributions.Beta(beta, beta).sample((x1.shape[0], 1, 1, 1))
    if preserve_order:
        share = torch.max(share, 1 - share)
    share = share.to(x1.device)
    of_label = share[:, :, 0, 0]
    return share * x1 + (1 - share) * x2, of_label * y1 + (1 - of_label) * y2
