"""Gradient reversal (Ganin and Lempitsky, arXiv 1409.7495)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["ReverseGrad"]


class _ReverseGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, grad_scaling: float) -> torch.Tensor:
        ctx.grad_scaling = grad_scaling
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.grad_scaling * grad_output, None


class ReverseGrad(nn.Module):
    """Identity whose gradient is multiplied by ``-grad_scaling``."""

    def forward(self, x: torch.Tensor, grad_scaling: float = 1.0) -> torch.Tensor:
        """Return ``x``.

        Raises:
            ValueError: if ``grad_scaling`` is negative.
        """
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling must be >= 0, not {grad_scaling}")
        return _ReverseGrad.apply(x, grad_scaling)
