"""Losses that two or more methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .prompted_clip import Prediction


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


def consistency_terms(
    prediction: Prediction, frozen: Prediction, text: float, image: float, logits: float
) -> dict[str, Tensor]:
    """What keeps a prompted CLIP near the frozen one: PromptSRC's three terms, weighted.

    Args:
        prediction: of the prompted model.
        frozen: of the frozen one, on the same images.
        text, image, logits: weights of the terms.
    """
    return {
        "text": text * feature_consistency(prediction.text_features, frozen.text_features),
        "image": image * feature_consistency(prediction.image_features, frozen.image_features),
        "logits": logits * logit_consistency(prediction.logits, frozen.logits),
    }
