"""Small differentiable operations."""

from __future__ import annotations

from .mixup import mixup
from .reverse_grad import ReverseGrad
from .utils import create_onehot, sharpen_prob

__all__ = ["ReverseGrad", "create_onehot", "mixup", "sharpen_prob"]
