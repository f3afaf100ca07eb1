"""Training and test transforms from a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision import transforms as T
from torchvision.transforms import v2

from dassl.config import optional
from dassl.utils import check_availability, check_range, print_detail

from .augmentations import (
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    RandAugment,
    Random2DTranslation,
    RandomMagnitudeAugment,
)
from .pixels import FromPixels, PixelCompose, ScaleShift, UnitRange

__all__ = [
    "AVAI_CHOICES",
    "INTERPOLATION_MODES",
    "Cutout",
    "GaussianNoise",
    "InstanceNormalization",
    "Random2DTranslation",
    "build_plain_transform",
    "build_transform",
    "image_size",
]

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    # Part of every test transform; accepted in the list without effect, as upstream.
    "center_crop",
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]

INTERPOLATION_MODES = {
    "bilinear": T.InterpolationMode.BILINEAR,
    "bicubic": T.InterpolationMode.BICUBIC,
    "nearest": T.InterpolationMode.NEAREST,
}

# What DATALOADER.CACHE fast computes on uint8 tensors, to one grey level of the same on PIL images;
# the steps behind "to torch tensor" are on tensors anyway.
ON_PIXELS = {
    "random_flip",
    "random_resized_crop",
    "center_crop",
    "normalize",
    "instance_norm",
    "gaussian_noise",
}

# transform -> least and largest value, and the settings under INPUT that have to be of that range
RANGES: dict[str, list[tuple[float, float, tuple[str, ...]]]] = {
    "random_crop": [(0, math.inf, ("CROP_PADDING",))],
    "cutout": [(0, math.inf, ("CUTOUT_N", "CUTOUT_LEN"))],
    "randaugment_fixmatch": [(0, math.inf, ("RANDAUGMENT_N",))],
    "randaugment2": [(0, math.inf, ("RANDAUGMENT_N",))],
    "gaussian_noise": [(0, math.inf, ("GN_STD",))],
    "colorjitter": [
        (0, math.inf, ("COLORJITTER_B", "COLORJITTER_C", "COLORJITTER_S")),
        (0, 0.5, ("COLORJITTER_H",)),
    ],
    "randomgrayscale": [(0, 1, ("RGS_P",))],
    "gaussian_blur": [(0, 1, ("GB_P",)), (1, math.inf, ("GB_K",))],
}

Step = tuple[str, Callable]


def build_transform(
    cfg: Any,
    is_train: bool = True,
    choices: Sequence[str] | None = None,
    verbose: bool = True,
) -> Callable | None:
    """Build the transform of one split.

    The order of steps is fixed and does not depend on the order of the list. Automatic policies
    are torchvision's: ``imagenet_policy``, ``cifar10_policy`` and ``svhn_policy`` are its
    ``AutoAugment``; they differ from upstream's own versions in details of the operations.
    ``randaugment`` has upstream's operations and strengths (``RANDAUGMENT_M`` of 0 to 30).
    ``randaugment_fixmatch`` and ``randaugment2`` are
    :class:`~dassl.data.transforms.augmentations.RandomMagnitudeAugment`. All draw from PyTorch's
    generator instead of Python's and NumPy's.

    Args:
        cfg: configuration; reads ``INPUT``, and ``DATALOADER.CACHE`` for the training transform.
        is_train: training (random) or test transform.
        choices: names from ``AVAI_CHOICES`` used instead of ``INPUT.TRANSFORMS``.
        verbose: whether to print the steps, as the log of a run has them.

    Returns:
        A callable from PIL image (with ``DATALOADER.CACHE fast`` also from a uint8 array
        ``(H, W, 3)``, see :class:`PixelCompose`) to tensor ``(3, H, W)``, or None with
        ``INPUT.NO_TRANSFORM``. The tensor is on ``DATALOADER.TRANSFORM_DEVICE`` in training.

    Raises:
        ValueError: for an unknown name or interpolation, a device that cannot be used, or a setting
            of a listed transform that is out of range.
    """
    if cfg.INPUT.NO_TRANSFORM:
        if verbose:
            print("Note: no transform is applied!")
        return None
    source = "INPUT.TRANSFORMS" if choices is None else "choices"
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, AVAI_CHOICES, source)
    fast = is_train and optional(cfg, "DATALOADER.CACHE") == "fast"
    pixels = fast and _can_use_pixels(cfg.INPUT, choices)
    if is_train:
        device = _device(optional(cfg, "DATALOADER.TRANSFORM_DEVICE"), pixels)
        steps = _train_steps(cfg.INPUT, choices, device if pixels else None)
    else:
        steps = _test_steps(cfg.INPUT, choices)
    if verbose:
        print_detail(f"Building transform_{'train' if is_train else 'test'}")
        for text, _ in steps:
            print_detail(f"+ {text}")
    transforms = [step for _, step in steps]
    return PixelCompose(transforms, device) if pixels else T.Compose(transforms)


def _device(name: str, pixels: bool) -> torch.device:
    problem = None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"DATALOADER.TRANSFORM_DEVICE is {name!r}: use cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        problem = "there is no CUDA device"
    elif device.type != "cpu" and not pixels:
        problem = (
            "only the uint8 tensors of DATALOADER.CACHE fast, with its INPUT.TRANSFORMS, are "
            "augmented there"
        )
    if problem:
        raise ValueError(f"DATALOADER.TRANSFORM_DEVICE is {name!r}, but {problem}")
    return device


def _can_use_pixels(cfg: Any, choices: Sequence[str]) -> bool:
    others = sorted(set(choices) - ON_PIXELS)
    if cfg.INTERPOLATION == "nearest":
        others.append("nearest")
    if others:
        print(f"Note: PIL images are transformed in spite of CACHE fast, for {', '.join(others)}")
    return not others


def image_size(cfg: Any) -> tuple[int, int]:
    """Return height and width of the images that transforms make, in pixels.

    Args:
        cfg: node ``INPUT`` of the configuration.

    Raises:
        ValueError: ``SIZE`` is something else than two whole numbers from 1 on.
    """
    size = tuple(cfg.SIZE)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            f'INPUT.SIZE is {size}: give height and width in pixels, as in INPUT.SIZE "(224, 224)"'
        )
    return size


def build_plain_transform(cfg: Any) -> Callable:
    """Build the transform behind ``img0``: resize to SIZE, to tensor, normalise if listed."""
    steps = [T.Resize(image_size(cfg.INPUT), interpolation=_interpolation(cfg.INPUT)), T.ToTensor()]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(_normalize(cfg.INPUT)[1])
    return T.Compose(steps)


def _train_steps(cfg: Any, choices: Sequence[str], pixels: torch.device | None) -> list[Step]:
    """Return the training steps; with ``pixels`` they take uint8 tensors and draw the same."""
    size, mode = image_size(cfg), _interpolation(cfg)
    for choice in choices:
        for least, most, keys in RANGES.get(choice, ()):
            check_range(cfg, "INPUT", least, most, *keys)
    side = f"{size[0]}x{size[1]}"
    kind = v2 if pixels else T
    steps: list[Step] = []
    if pixels:
        steps.append((f"to uint8 tensor on {pixels}", FromPixels(pixels)))

    # Settings are read when a step is wanted: a tree made elsewhere has those of its steps only.
    def add(name: str, build: Callable[[], Step]) -> None:
        if name in choices:
            steps.append(build())

    def resized_crop() -> Step:
        scale = tuple(cfg.RRCROP_SCALE)
        if len(scale) != 2 or not 0 <= scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"INPUT.RRCROP_SCALE is {scale}: give the least and the largest share of an "
                'image, from 0 to 1, as in INPUT.RRCROP_SCALE "(0.08, 1.0)"'
            )
        crop = kind.RandomResizedCrop(size, scale=scale, interpolation=mode)
        return f"random resized crop (size={side}, scale={scale})", crop

    def jitter() -> Step:
        strengths = (cfg.COLORJITTER_B, cfg.COLORJITTER_C, cfg.COLORJITTER_S, cfg.COLORJITTER_H)
        text = "color jitter (brightness={}, contrast={}, saturation={}, hue={})"
        return text.format(*strengths), T.ColorJitter(*strengths)

    def randaugment() -> Step:
        n, m = cfg.RANDAUGMENT_N, cfg.RANDAUGMENT_M
        if not 0 <= m <= 30 or n < 0:
            raise ValueError(
                f"INPUT.RANDAUGMENT_N is {n} and RANDAUGMENT_M {m}: use 0 or more, and 0 to 30"
            )
        return f"randaugment (n={n}, m={m})", RandAugment(n, m)

    def blur() -> Step:
        if cfg.GB_K % 2 == 0:
            raise ValueError(f"INPUT.GB_K is {cfg.GB_K}: use an odd number, as in INPUT.GB_K 21")
        text = f"gaussian blur (kernel={cfg.GB_K}, p={cfg.GB_P})"
        return text, T.RandomApply([T.GaussianBlur(cfg.GB_K)], p=cfg.GB_P)

    def random_magnitudes(name: str, **how: Any) -> Step:
        n = cfg.RANDAUGMENT_N
        return f"{name} (n={n})", RandomMagnitudeAugment(n, **how)

    # Both crops already give SIZE.
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {side}", kind.Resize(size, interpolation=mode)))
    add(
        "random_translation",
        lambda: ("random translation", Random2DTranslation(size[0], size[1], interpolation=mode)),
    )
    add(
        "random_crop",
        lambda: (
            f"random crop (size={side}, padding={cfg.CROP_PADDING})",
            T.RandomCrop(size, padding=cfg.CROP_PADDING),
        ),
    )
    add("random_resized_crop", resized_crop)
    add("random_flip", lambda: ("random flip", T.RandomHorizontalFlip()))
    policies = T.AutoAugmentPolicy
    add("imagenet_policy", lambda: ("imagenet policy", T.AutoAugment(policies.IMAGENET)))
    add("cifar10_policy", lambda: ("cifar10 policy", T.AutoAugment(policies.CIFAR10)))
    add("svhn_policy", lambda: ("svhn policy", T.AutoAugment(policies.SVHN)))
    add("randaugment", randaugment)
    add("randaugment_fixmatch", lambda: random_magnitudes("randaugment_fixmatch", cutout=True))
    add("randaugment2", lambda: random_magnitudes("randaugment2", p=0.6))
    add("colorjitter", jitter)
    add(
        "randomgrayscale",
        lambda: (f"random gray scale (p={cfg.RGS_P})", T.RandomGrayscale(p=cfg.RGS_P)),
    )
    add("gaussian_blur", blur)
    fused = pixels is not None and "normalize" in choices
    if not fused:
        to_tensor = UnitRange() if pixels else T.ToTensor()
        steps.append(("to torch tensor of range [0, 1]", to_tensor))
    add(
        "cutout",
        lambda: (
            f"cutout (n_holes={cfg.CUTOUT_N}, length={cfg.CUTOUT_LEN})",
            Cutout(cfg.CUTOUT_N, cfg.CUTOUT_LEN),
        ),
    )
    if "normalize" in choices:
        text, step = _normalize(cfg)
        if pixels is not None:
            text, step = f"to torch tensor, {text}", ScaleShift(step, pixels)
        steps.append((text, step))
    add(
        "gaussian_noise",
        lambda: (
            f"gaussian noise (mean={cfg.GN_MEAN}, std={cfg.GN_STD})",
            GaussianNoise(cfg.GN_MEAN, cfg.GN_STD),
        ),
    )
    add("instance_norm", lambda: ("instance normalization", InstanceNormalization()))
    return steps


def _test_steps(cfg: Any, choices: Sequence[str]) -> list[Step]:
    size = image_size(cfg)
    shorter = max(size)
    steps: list[Step] = [
        (
            f"resize the smaller edge to {shorter}",
            T.Resize(shorter, interpolation=_interpolation(cfg)),
        ),
        (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        ("to torch tensor of range [0, 1]", T.ToTensor()),
    ]
    if "normalize" in choices:
        steps.append(_normalize(cfg))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps


def _normalize(cfg: Any) -> Step:
    mean, std = list(cfg.PIXEL_MEAN), list(cfg.PIXEL_STD)
    for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        numbers = all(type(value) in (int, float) for value in values)
        if not numbers or len(values) not in (1, 3):
            raise ValueError(
                f"INPUT.{key} {values!r:.80} is not a list of three numbers: give one for each of "
                f'red, green and blue, as in INPUT.{key} "[0.5, 0.5, 0.5]"'
            )
    # in the precision that divides
    if not (torch.tensor(std, dtype=torch.float32) > 0).all():
        raise ValueError(
            f"INPUT.PIXEL_STD is {std}, and pixels are divided by it: give numbers above 0, as in "
            'INPUT.PIXEL_STD "[0.5, 0.5, 0.5]"'
        )
    return f"normalization (mean={mean}, std={std})", T.Normalize(mean=mean, std=std)


def _interpolation(cfg: Any) -> T.InterpolationMode:
    check_availability(cfg.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    return INTERPOLATION_MODES[cfg.INTERPOLATION]
