"""Losses that two or more methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .learner import Prediction


def feature_consistency(features: Tensor, frozen: Tensor) -> Tensor:
    """Compute the mean absolute difference of two sets of unit-norm features, over all entries.

    PromptSRC (arXiv 2307.06948), eq. 3; the mean over entries is its code's reduction.
    """
    return F.l1_loss(features, frozen)


def cosine_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """Compute one minus the mean cosine of features and frozen ones, both ``(N, e)``.

    KgCoOp's and TCP's code, of class text features; MMRL's and CoPrompt's, of image features too.
    KgCoOp's paper (arXiv 2303.13283) has the squared Euclidean distance, which is twice that for
    features of unit norm.
    """
    return 1 - F.cosine_similarity(features, frozen, dim=-1, eps=1e-7).mean()


def logit_consistency(logits: Tensor, frozen_logits: Tensor, symmetric: bool = False) -> Tensor:
    """Compute the Kullback-Leibler divergence of the frozen and the prompted class distributions.

    ``(1 / (B C)) sum_bc q log(q / p)`` with ``q`` the frozen and ``p`` the prompted distribution.
    It is divided by images x classes, not by images, as in PromptSRC's code (its paper, eq. 5, sums
    over the classes).

    Args:
        logits, frozen_logits: ``(B, C)``, scaled.
        symmetric: take the mean of both directions (MMLoP, arXiv 2602.21397, eq. 7).
    """
    p, q = F.log_softmax(logits, dim=1), F.log_softmax(frozen_logits, dim=1)
    divergence = F.kl_div(p, q, reduction="sum", log_target=True)
    if symmetric:
        divergence = (divergence + F.kl_div(q, p, reduction="sum", log_target=True)) / 2
    return divergence / logits.numel()


def consistency_terms(
    prediction: Prediction,
    frozen: Prediction,
    weights: tuple[float, float, float],
    symmetric: bool = False,
) -> dict[str, Tensor]:
    """Compute PromptSRC's three loss terms that keep a prompted CLIP near the frozen one.

    Args:
        prediction: of the prompted model.
        frozen: of the frozen one, on the same images.
        weights: of the terms of text features, image features and class distributions.
        symmetric: whether the divergence of the class distributions is taken in both directions.

    Returns:
        weighted terms by name: ``text``, ``image``, ``logits``.
    """
    text, image, logits = weights
    divergence = logit_consistency(prediction.logits, frozen.logits, symmetric)
    return {
        "text": text * feature_consistency(prediction.text_features, frozen.text_features),
        "image": image * feature_consistency(prediction.image_features, frozen.image_features),
        "logits": logits * divergence,
    }
