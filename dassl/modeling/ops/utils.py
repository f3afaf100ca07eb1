"""Operations on probabilities and labels."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["create_onehot", "sharpen_prob"]


def sharpen_prob(p: torch.Tensor, temperature: float = 2) -> torch.Tensor:
    """Raise probabilities ``(batch, n_cls)`` to a power and normalise each row again."""
    p = p.pow(temperature)
    return p / p.sum(1, keepdim=True)


def create_onehot(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return float one-hot rows ``(batch, num_classes)`` of labels ``(batch,)``."""
    return F.one_hot(label.long(), num_classes).float()
