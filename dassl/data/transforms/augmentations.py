"""Augmentations that torchvision does not have. All draw from PyTorch's global generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import nn
from torchvision import transforms as T
from torchvision.transforms import functional as TF

__all__ = [
    "Cutout",
    "GaussianNoise",
    "InstanceNormalization",
    "RandAugment",
    "Random2DTranslation",
    "RandomMagnitudeAugment",
]


class Random2DTranslation(nn.Module):
    """With probability ``p`` enlarge to 9/8 of the size and crop at a random place, else resize.

    Args:
        height: height of the result in pixels.
        width: width of the result in pixels.
        p: probability of enlarging and cropping.
        interpolation: torchvision's mode for resizing.
    """

    def __init__(
        self,
        height: int,
        width: int,
        p: float = 0.5,
        interpolation: T.InterpolationMode = T.InterpolationMode.BILINEAR,
    ) -> None:
        super().__init__()
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def forward(self, img: Image.Image) -> Image.Image:
        if torch.rand(1).item() >= self.p:
            return TF.resize(img, [self.height, self.width], self.interpolation, antialias=True)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        img = TF.resize(img, [height, width], self.interpolation, antialias=True)
        top = torch.randint(height - self.height + 1, (1,)).item()
        left = torch.randint(width - self.width + 1, (1,)).item()
        return TF.crop(img, top, left, self.height, self.width)


class InstanceNormalization(nn.Module):
    """Give every channel of an image mean 0 and standard deviation 1.

    Args:
        eps: added to the standard deviation.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """Normalise an image ``(C, H, W)``."""
        mean = img.mean(dim=(1, 2), keepdim=True)
        std = img.std(dim=(1, 2), keepdim=True)
        return (img - mean) / (std + self.eps)


class Cutout(nn.Module):
    """Set square patches to 0 (DeVries and Taylor, arXiv 1708.04552).

    Args:
        n_holes: number of patches.
        length: side of a patch in pixels; a patch may reach over the border.
    """

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        super().__init__()
        self.n_holes = n_holes
        self.length = length

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """Return a copy of an image ``(C, H, W)`` with holes."""
        height, width = img.shape[-2:]
        img = img.clone()
        for _ in range(self.n_holes):
            y = torch.randint(height, (1,)).item()
            x = torch.randint(width, (1,)).item()
            top, left = max(y - self.length // 2, 0), max(x - self.length // 2, 0)
            img[..., top : y + self.length // 2, left : x + self.length // 2] = 0.0
        return img


class GaussianNoise(nn.Module):
    """Add Gaussian noise with probability ``p``.

    Args:
        mean: mean of the noise.
        std: its standard deviation.
        p: probability.
    """

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
        self.p = p

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """Return a noisy copy of, or the same, image ``(C, H, W)``."""
        if torch.rand(1).item() > self.p:
            return img
        # on the CPU, whose generator the seeds are for
        noise = torch.randn_like(img, device="cpu").to(img.device)
        return img + noise * self.std + self.mean


def _signed(value: float) -> float:
    return value if torch.rand(1).item() < 0.5 else -value


def _moved(img: Image.Image, *matrix: float) -> Image.Image:
    return img.transform(img.size, Image.Transform.AFFINE, matrix)


def _solarize_add(img: Image.Image, added: float) -> Image.Image:
    return img.point([min(255, level + int(added)) if level < 128 else level for level in LEVELS])


def _cut_out(img: Image.Image, side: float) -> Image.Image:
    width, height = img.size
    x, y = torch.rand(1).item() * width, torch.rand(1).item() * height
    left, top = int(max(0.0, x - side / 2)), int(max(0.0, y - side / 2))
    img = img.copy()
    corner = min(width, left + side), min(height, top + side)
    ImageDraw.Draw(img).rectangle((left, top, *corner), fill=(125, 123, 114))
    return img


#: grey levels of an RGB image's three channels
LEVELS = 3 * tuple(range(256))

#: operations of RandAugment: lowest and highest strength, and what they do
OPERATIONS: dict[str, tuple[float, float, Callable[[Image.Image, float], Image.Image]]] = {
    "autocontrast": (0, 1, lambda img, _: ImageOps.autocontrast(img)),
    "equalize": (0, 1, lambda img, _: ImageOps.equalize(img)),
    "invert": (0, 1, lambda img, _: ImageOps.invert(img)),
    "rotate": (0, 30, lambda img, degrees: img.rotate(_signed(degrees))),
    "posterize": (4, 8, lambda img, bits: ImageOps.posterize(img, int(bits))),
    "solarize": (0, 256, lambda img, level: ImageOps.solarize(img, int(level))),
    "solarize_add": (0, 110, _solarize_add),
    "color": (0.1, 1.9, lambda img, share: ImageEnhance.Color(img).enhance(share)),
    "contrast": (0.1, 1.9, lambda img, share: ImageEnhance.Contrast(img).enhance(share)),
    "brightness": (0.1, 1.9, lambda img, share: ImageEnhance.Brightness(img).enhance(share)),
    "sharpness": (0.1, 1.9, lambda img, share: ImageEnhance.Sharpness(img).enhance(share)),
    "shear_x": (0, 0.3, lambda img, slope: _moved(img, 1, _signed(slope), 0, 0, 1, 0)),
    "shear_y": (0, 0.3, lambda img, slope: _moved(img, 1, 0, 0, _signed(slope), 1, 0)),
    "cutout": (0, 40, _cut_out),
    "translate_x": (0, 100, lambda img, pixels: _moved(img, 1, 0, _signed(pixels), 0, 1, 0)),
    "translate_y": (0, 100, lambda img, pixels: _moved(img, 1, 0, 0, 0, 1, _signed(pixels))),
}


class RandAugment(nn.Module):
    """Apply ``n`` random operations of one strength, as Dassl's RandAugment (arXiv 1909.13719).

    What moves out of the image leaves black, and pixels are taken as they are (nearest). Shifts and
    holes are in pixels, made for images of 224 x 224.

    Args:
        n: number of operations, drawn with replacement.
        m: strength, 0 to 30: the share m / 30 of the way from an operation's lowest to its highest.
    """

    def __init__(self, n: int = 2, m: float = 10) -> None:
        super().__init__()
        self.n = n
        self.m = m

    def forward(self, img: Image.Image) -> Image.Image:
        for place in torch.randint(len(OPERATIONS), (self.n,)).tolist():
            lowest, highest, operation = list(OPERATIONS.values())[place]
            img = operation(img, lowest + (self.m / 30) * (highest - lowest))
        return img

    def extra_repr(self) -> str:
        return f"n={self.n}, m={self.m}"


class RandomMagnitudeAugment(nn.Module):
    """Apply ``n`` random operations, each at a random strength, as FixMatch's RandAugment does.

    The operations are those of torchvision's ``TrivialAugmentWide``; upstream has its own list with
    somewhat narrower ranges.

    Args:
        n: number of operations.
        p: probability with which each of them is applied.
        cutout: finally cover a grey square of up to half the shorter side (FixMatch).
    """

    def __init__(self, n: int = 2, p: float = 1.0, cutout: bool = False) -> None:
        super().__init__()
        self.n = n
        self.p = p
        self.cutout = cutout
        self.operation = T.TrivialAugmentWide()

    def forward(self, img: Image.Image) -> Image.Image:
        for _ in range(self.n):
            if torch.rand(1).item() < self.p:
                img = self.operation(img)
        return self._cover(img) if self.cutout else img

    def _cover(self, img: Image.Image) -> Image.Image:
        width, height = img.size
        side = int(torch.rand(1).item() * 0.5 * min(width, height))
        x = int(torch.randint(width, (1,))) - side // 2
        y = int(torch.randint(height, (1,))) - side // 2
        img = img.copy()
        img.paste((127, 127, 127), (x, y, x + side, y + side))
        return img

    def extra_repr(self) -> str:
        return f"n={self.n}, p={self.p}, cutout={self.cutout}"
