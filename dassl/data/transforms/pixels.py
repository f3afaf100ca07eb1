"""Transforms of uint8 arrays and tensors: what cached images go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T
from torchvision.transforms import functional as TF

__all__ = ["FromPixels", "PixelCompose", "ScaleShift", "UnitRange", "split_fixed"]

CPU = torch.device("cpu")


class PixelCompose(T.Compose):
    """Composed transform that takes a PIL image or a uint8 array ``(H, W, 3)``.

    Args:
        transforms: the steps.
        device: where all steps but the first work, and where the result is.
    """

    def __init__(self, transforms: Sequence[Callable], device: torch.device) -> None:
        super().__init__(list(transforms))
        self.device = device


class FromPixels(nn.Module):
    """PIL image or uint8 array ``(H, W, C)`` to uint8 tensor ``(C, H, W)`` on a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def forward(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        if isinstance(image, np.ndarray):
            return self._there(torch.from_numpy(image)).permute(2, 0, 1)
        return self._there(TF.pil_to_tensor(image))

    def _there(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # or else the copy waits for the steps on the device
        return pixels.to(self.device, non_blocking=True)


class UnitRange(nn.Module):
    """uint8 tensor to float32 tensor of range [0, 1], to the bit as ``T.ToTensor`` does it."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if not pixels.is_cpu:
            return pixels / 255
        # NumPy converts and divides in one pass
        return torch.from_numpy(np.true_divide(pixels.numpy(), 255, dtype=np.float32))


class NormalizeInPlace(nn.Module):
    """``T.Normalize``, to the bit, without its checks and copies for every image.

    Args:
        normalize: the step that it stands for.

    Raises:
        ValueError: if a standard deviation is 0.
    """

    def __init__(self, normalize: T.Normalize) -> None:
        super().__init__()
        self.mean, self.std = _per_channel(normalize)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise an image ``(C, H, W)`` in place."""
        return image.sub_(self.mean).div_(self.std)


class ScaleShift(nn.Module):
    """``T.ToTensor`` and ``T.Normalize`` as one multiplication and one addition.

    The result differs by rounding: by less than 1e-6 for the usual means and deviations.

    Args:
        normalize: the second of the steps that it stands for.
        device: where the images are.

    Raises:
        ValueError: if a standard deviation is 0.
    """

    def __init__(self, normalize: T.Normalize, device: torch.device = CPU) -> None:
        super().__init__()
        mean, std = (values.double() for values in _per_channel(normalize))
        self.scale, self.shift = (1 / (255 * std)).float(), (-mean / std).float()
        self._there = self.scale.to(device), self.shift.to(device)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the normalised float32 tensor of a uint8 tensor ``(C, H, W)``."""
        if not pixels.is_cpu:
            scale, shift = self._there
            return torch.addcmul(shift, pixels.float(), scale)
        # NumPy converts and multiplies in one pass
        scaled = np.multiply(pixels.numpy(), self.scale.numpy(), dtype=np.float32)
        return torch.from_numpy(scaled).add_(self.shift)


def _per_channel(normalize: T.Normalize) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation as float32 ``(C, 1, 1)``, as ``T.Normalize`` rounds them."""
    if 0 in normalize.std:
        raise ValueError(f"INPUT.PIXEL_STD {list(normalize.std)} holds a 0")
    mean, std = (torch.tensor(v, dtype=torch.float32) for v in (normalize.mean, normalize.std))
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)


def split_fixed(tfm: Any, fast: bool = False) -> tuple[T.Compose, T.Compose] | None:
    """Split a transform into resizing and cropping that are the same each time, and the rest.

    Args:
        tfm: any transform.
        fast: let the rest differ by rounding, see :class:`ScaleShift`.

    Returns:
        The first part, from PIL image to PIL image of one size, and the rest, from uint8 tensor
        ``(3, H, W)`` to what ``tfm`` gives, to the bit. None if ``tfm`` is not made like that.
    """
    if type(tfm) is not T.Compose:
        return None
    kinds = [type(step) for step in tfm.transforms]
    if T.ToTensor not in kinds:
        return None
    n = kinds.index(T.ToTensor)
    fixed, rest = tfm.transforms[:n], tfm.transforms[n + 1 :]
    if not set(kinds[:n]) <= {T.Resize, T.CenterCrop} or T.CenterCrop not in kinds[:n]:
        return None
    if kinds[n + 1 : n + 2] == [T.Normalize]:
        # what UnitRange made is no one else's, so it may be changed
        first = [ScaleShift(rest[0])] if fast else [UnitRange(), NormalizeInPlace(rest[0])]
        rest = [*first, *rest[1:]]
    else:
        rest = [UnitRange(), *rest]
    return T.Compose(fixed), T.Compose(rest)
