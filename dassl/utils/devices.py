"""The device that a run or a predictor computes on."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["choose_device", "device_of_run"]


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of this name, by default CUDA if there is one, else the CPU.

    One of several GPUs becomes the current one, which ``cuda`` without a number then means.

    Raises:
        ValueError: this machine has no such device.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def device_of_run(cfg: Any) -> torch.device:
    """Return the device that a configuration asks for: DEVICE, but the CPU if USE_CUDA is False.

    Raises:
        ValueError: this machine has no such device.
    """
    return choose_device(cfg.DEVICE) if cfg.USE_CUDA else torch.device("cpu")
