"""Optimisers and learning-rate schedules built from a configuration."""

from __future__ import annotations

from .device_rates import DeviceRates
from .lr_scheduler import (
    AVAI_SCHEDS,
    ConstantWarmupScheduler,
    LinearWarmupScheduler,
    build_lr_scheduler,
)
from .optimizer import AVAI_OPTIMS, build_optimizer

__all__ = [
    "AVAI_OPTIMS",
    "AVAI_SCHEDS",
    "ConstantWarmupScheduler",
    "DeviceRates",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
    "build_optimizer",
]
