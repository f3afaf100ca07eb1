"""Small differentiable operations."""

from __future__ import annotations

from .reverse_grad import ReverseGrad
from .utils import create_onehot, sharpen_prob

__all__ = ["ReverseGrad", "create_onehot", "sharpen_prob"]
