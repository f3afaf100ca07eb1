"""Helpers for trainers with unlabelled images: labels, orders, ramps, averaged weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

__all__ = [
    "create_onehot",
    "ema_model_update",
    "linear_rampup",
    "reverse_index",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]


def sharpen_prob(p: torch.Tensor, temperature: float = 2) -> torch.Tensor:
    """Raise probabilities ``(batch, n_cls)`` to a power and normalise each row again."""
    p = p.pow(temperature)
    return p / p.sum(1, keepdim=True)


def reverse_index(data: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return data and labels of a batch in reverse order."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return data and labels of a batch in a random order, the same for both."""
    order = torch.randperm(data.shape[0])
    return data[order], label[order]


def create_onehot(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return float one-hot rows ``(batch, num_classes)`` of labels ``(batch,)``."""
    return F.one_hot(label.long(), num_classes).float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """Return ``exp(-5 (1 - t)^2)``, which rises to 1 (Laine and Aila, arXiv 1610.02242).

    Args:
        current: steps done; ``t`` is their share of the length, 0 to 1.
        rampup_length: steps until 1 is reached, more than 0.

    Raises:
        ValueError: for another length.
    """
    return math.exp(-5.0 * (1.0 - linear_rampup(current, rampup_length)) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """Return the share of steps done, 0 to 1; arguments as for ``sigmoid_rampup``."""
    if rampup_length <= 0:
        raise ValueError(f"the length of a ramp must be more than 0, not {rampup_length}")
    return min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Move the parameters of an averaged model towards those of a model, in place.

    Args:
        model: gives the new values. Buffers are not averaged.
        ema_model: of the same architecture; keeps the share ``alpha`` of its own values.
        alpha: 0 to 1.
    """
    for average, value in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(value, alpha=1 - alpha)
