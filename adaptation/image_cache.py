"""A classifier of stored image features: the cache of Tip-Adapter and Tip-Adapter-F.

Zhang et al., ECCV 2022, arXiv 2207.09519, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.features import FeatureLearner
from adaptation.learner import Prediction, Steps

#: similarities that the search computes at a time
AT_ONCE = 2**24


def grid(scale: float, steps: int) -> list[float]:
    """Return the values that are searched, from 0.1 on and below ``scale``."""
    return [0.1 + i * (scale - 0.1) / steps for i in range(steps)]


class CacheLearner(FeatureLearner):
    """Keys and labels of the training images, beside CLIP's text features.

    Args:
        n_classes: number of classes, C.
        embed_dim: width of the features.
        pair: sharpness (beta) and weight (alpha) of the cache.
        scale: factor of the text classifier.
        trained: whether the keys are trained.
    """

    class_specific = True
    class_rows = ("text_weights",)
    per_image = ("keys", "labels")

    def __init__(
        self,
        n_classes: int,
        embed_dim: int,
        pair: tuple[float, float],
        scale: float,
        trained: bool,
    ) -> None:
        super().__init__()
        self.scale = scale
        keys = torch.zeros(0, embed_dim)
        if trained:
            self.keys: Tensor = nn.Parameter(keys)  # (N, embed_dim)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))  # (N,)
        self.register_buffer("text_weights", torch.zeros(n_classes, embed_dim))
        self.register_buffer("pair", torch.tensor(pair))
        self.labels: Tensor
        self.text_weights: Tensor
        self.pair: Tensor

    def start(self, clip: Steps) -> None:
        self.text_weights.copy_(F.normalize(clip.raw_text_features(unit=True), dim=-1))

    def text_features(self, clip: Steps) -> Tensor:
        return self.text_weights

    def sums(self, similarities: Tensor, beta: Tensor | float) -> Tensor:
        """Sum ``exp(-beta (1 - s))`` over the images of each class.

        Args:
            similarities: ``(B, N)``.
            beta: sharpness.

        Returns:
            ``(B, C)``.
        """
        near = (beta * (similarities - 1)).exp()
        return near.new_zeros(near.shape[0], len(self.text_weights)).index_add(1, self.labels, near)

    def classify(self, clip: Steps, raw: Tensor) -> Prediction:
        features, (beta, alpha) = F.normalize(raw, dim=-1), self.pair
        logits = self.scale * features @ self.text_weights.t()
        logits = logits + alpha * self.sums(features @ self.keys.t(), beta)
        return Prediction(features, self.text_weights, logits)

    @torch.no_grad()
    def count_correct(
        self, raw: Tensor, labels: Tensor, betas: Sequence[float], alphas: Sequence[float]
    ) -> np.ndarray:
        """Count the images that each pair classifies correctly.

        Args:
            raw: ``(M, embed_dim)`` features.
            labels: ``(M,)``.
            betas, alphas: values to pair.

        Returns:
            ``(len(betas), len(alphas))``.
        """
        counts = torch.zeros(len(betas), len(alphas), dtype=torch.long, device=raw.device)
        size = max(1, AT_ONCE // (len(self.keys) + len(self.text_weights) * len(alphas)))
        weights = torch.tensor(alphas).to(raw.device)[:, None, None]
        for part, label in zip(raw.split(size), labels.split(size), strict=True):
            features = F.normalize(part, dim=-1)
            text = self.scale * features @ self.text_weights.t()
            similarities = features @ self.keys.t()
            for row, beta in enumerate(betas):
                logits = text + weights * self.sums(similarities, beta)  # (alphas, B, C)
                counts[row] += (logits.argmax(dim=-1) == label).sum(dim=-1)
        return counts.cpu().numpy()

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = {key: value.long() for key, value in weights.items() if key == "labels"}
        return {**weights, **whole}

    def check_values(self, weights: Mapping[str, Tensor]) -> None:
        labels, n_classes = weights["labels"], len(self.text_weights)
        if not torch.isin(labels, torch.arange(n_classes)).all():
            raise ValueError(f"its labels are not classes of 0 to {n_classes - 1}")

    def select_classes(
        self, weights: Mapping[str, Tensor], rows: Sequence[int], n_classes: int
    ) -> dict[str, Tensor]:
        chosen = super().select_classes(weights, rows, n_classes)
        numbers = {row: number for number, row in enumerate(rows)}
        labels = [numbers.get(int(label), -1) for label in chosen["labels"].flatten()]
        kept = [index for index, label in enumerate(labels) if label >= 0]
        here = torch.tensor([labels[index] for index in kept], dtype=torch.long)
        return {**chosen, "keys": chosen["keys"][kept], "labels": here}
