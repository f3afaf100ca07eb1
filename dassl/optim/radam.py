"""Rectified Adam under upstream's module name; the classes are PyTorch's."""

from __future__ import annotations

from torch.optim import AdamW, RAdam

__all__ = ["AdamW", "RAdam"]
