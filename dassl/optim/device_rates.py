"""Optimiser steps that a CUDA graph can repeat: the host decides nothing in them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam, RMSprop

#: Settings with which PyTorch's kernels read the learning rate from the device (as of 2.15). SGD
#: needs its fused form: the other forms pass the rate as a plain number. RMSprop and RAdam have no
#: fused form; of their two forms, the one over lists of tensors reads it. Without `capturable` the
#: number of steps stays on the host.
SETTINGS: dict[type[Optimizer], dict[str, bool]] = {
    SGD: {"fused": True},
    Adam: {"fused": True, "capturable": True},
    AdamW: {"fused": True, "capturable": True},
    RMSprop: {"foreach": True, "capturable": True},
    RAdam: {"foreach": True, "capturable": True},
}

#: kinds of devices on which `capturable` is set; PyTorch refuses it on the CPU
CAPTURABLE_ON = ("cuda",)


class DeviceRates:
    """Learning rates of an optimiser as tensors, for the time of a step.

    Outside of :meth:`on_device` the optimiser is as it was built: schedules set plain numbers in
    it, log lines and checkpoints take plain numbers from it, and none waits for the device.

    Args:
        optimizer: optimiser with one or more groups of parameters on one device.

    Raises:
        ValueError: an optimiser whose steps cannot be repeated by a CUDA graph.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        kind = type(optimizer)
        if kind not in SETTINGS:
            known = ", ".join(sorted(one.__name__ for one in SETTINGS))
            raise ValueError(
                f"OPTIM.CUDA_GRAPH: steps of {kind.__name__} cannot be captured, those of {known} "
                "can: use one of them (OPTIM.NAME) or set OPTIM.CUDA_GRAPH False"
            )
        self.optimizer = optimizer
        self.device = optimizer.param_groups[0]["params"][0].device
        self.settings = dict(SETTINGS[kind])
        if self.device.type not in CAPTURABLE_ON:
            self.settings.pop("capturable", None)
        # the fused kernels take float32 only
        self.rates = [
            torch.zeros((), dtype=torch.float32, device=self.device) for _ in optimizer.param_groups
        ]
        self._numbers: list[float | None] = [None] * len(self.rates)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Let the optimiser read its present rates from the device within the block."""
        groups = self.optimizer.param_groups
        for index, (group, rate) in enumerate(zip(groups, self.rates, strict=True)):
            if group["lr"] != self._numbers[index]:
                self._numbers[index] = group["lr"]
                rate.fill_(group["lr"])
        self._move_step_counts()
        plain: list[dict[str, Any]] = [
            {key: group[key] for key in ("lr", *self.settings)} for group in groups
        ]
        for group, rate in zip(groups, self.rates, strict=True):
            group.update(lr=rate, **self.settings)
        try:
            with warnings.catch_warnings():
                # the first steps run outside of a graph
                warnings.filterwarnings("ignore", message=".*capturable=True")
                yield
        finally:
            for group, values in zip(groups, plain, strict=True):
                group.update(values)

    def _move_step_counts(self) -> None:
        """Move the step counts to the device; those of a loaded checkpoint are on the host."""
        for parameter, state in self.optimizer.state.items():
            if "step" in state:
                state["step"] = state["step"].to(parameter.device)
