"""What a transform does, as text: transforms with the same text give the same image."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision import transforms as T
from torchvision.transforms import v2

from .augmentations import InstanceNormalization
from .pixels import FromPixels, PixelCompose, ScaleShift, UnitRange

__all__ = ["draws_nothing", "transform_parameters"]

FIXED = {T.CenterCrop, T.Normalize, T.Resize, T.ToTensor, InstanceNormalization}
FIXED |= {v2.Resize, FromPixels, ScaleShift, UnitRange}
KNOWN = ("torchvision.transforms.", "dassl.data.transforms.")


def transform_parameters(tfm: Any) -> str | None:
    """Return the classes and parameters of a transform and of its steps, as JSON.

    Args:
        tfm: any callable.

    Returns:
        None if it holds steps that are neither torchvision's nor this package's, since it is not
        known what their results depend on.
    """
    try:
        return json.dumps(tfm, default=_parameters, sort_keys=True)
    except TypeError:
        return None


def draws_nothing(tfm: Any) -> bool:
    """Return whether a transform is known to give the same image each time."""
    if type(tfm) not in (T.Compose, PixelCompose):
        return False
    return {type(step) for step in tfm.transforms} <= FIXED


def _parameters(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.tolist()
    if isinstance(value, nn.ModuleList):
        return list(value)
    if not type(value).__module__.startswith(KNOWN):
        raise TypeError(type(value))
    children = dict(value.named_children()) if isinstance(value, nn.Module) else {}
    own = {name: own for name, own in vars(value).items() if not name.startswith("_")}
    return [type(value).__qualname__, {**own, **children}]
