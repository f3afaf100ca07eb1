"""CLIP's own preprocessing of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL import Image


#: mean and standard deviation of each colour channel, for images in [0, 1]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _transform(
    n_px: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Callable[[Image.Image], torch.Tensor]:
    """Build CLIP's preprocessing for square inputs of ``n_px`` pixels."""
    from torchvision import transforms  # slow to import, and training has transforms of its own

    return transforms.Compose(
        [
            transforms.Resize(n_px, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(n_px),
            _to_rgb,
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
