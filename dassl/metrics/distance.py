"""Pairwise distances between two sets of vectors."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dassl.utils import check_availability


def compute_distance_matrix(
    input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean"
) -> torch.Tensor:
    """Return all pairwise distances.

    Args:
        input1: ``(m, d)``.
        input2: ``(n, d)``.
        metric: "euclidean" (squared Euclidean distance, as upstream) or "cosine".

    Returns:
        ``(m, n)``.

    Raises:
        ValueError: for inputs that are not 2-D or differ in d, or an unknown metric.
    """
    check_availability(metric, ["euclidean", "cosine"])
    if input1.dim() != 2 or input2.dim() != 2 or input1.size(1) != input2.size(1):
        raise ValueError(
            "distances need two matrices of the same width, got shapes "
            f"{tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    return cosine_distance(input1, input2)


def euclidean_squared_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return squared Euclidean distances ``(m, n)`` of rows ``(m, d)`` and ``(n, d)``."""
    squares = input1.pow(2).sum(1, keepdim=True) + input2.pow(2).sum(1, keepdim=True).t()
    return squares - 2 * input1 @ input2.t()


def cosine_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine similarity, ``(m, n)``, of rows ``(m, d)`` and ``(n, d)``."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
