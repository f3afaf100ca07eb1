"""Losses that two or more methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def feature_consistency(features: Tensor, frozen: Tensor) -> Tensor:
    """Mean absolute difference of two sets of unit-norm features, over all their entries.

    PromptSRC (arXiv 2307.06948), eq. 3; the mean over entries is its code's reduction.
    """
    return F.l1_loss(features, frozen)


def logit_consistency(logits: Tensor, frozen_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the frozen model's class distribution to the prompted one.

    ``(1 / (B C)) sum_bc q log(q / p)`` with ``q`` the frozen and ``p`` the prompted distribution:
    divided by images x classes, not by images, as in PromptSRC's code (its paper, eq. 5, sums over
    the classes).

    Args:
        logits, frozen_logits: ``(B, C)``, scaled.
    """
    return (
        F.kl_div(
            F.log_softmax(logits, dim=1),
            F.log_softmax(frozen_logits, dim=1),
            reduction="sum",
            log_target=True,
        )
        / logits.numel()
    )
