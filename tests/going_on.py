"""Interrupting runs inside this process, and comparing what they saved."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch

from support.ending import REQUEST, ToldToEnd


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the entries of two trees of plain data and tensors that are not equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{name}[{i}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    return [] if type(one) is type(other) and one == other else [name]


def last_checkpoint(folder: str | Path, model: str, epoch: int) -> dict[str, Any]:
    """What a run saved after an epoch, but for settings of how it was computed, and its history."""
    path = Path(folder, model, f"model.pth.tar-{epoch}")
    content = torch.load(path, weights_only=True)
    content.pop("meta", None)
    content["trainer_state"].pop("history", None)
    return content


def end_in_step(trainer: Any, step: int, number: int = signal.SIGTERM, step_name: str = "") -> None:
    """Have a signal come while a trainer takes its n-th step of this start, counted from 1."""
    name = step_name or "forward_backward"
    taken, method = [], getattr(trainer, name)

    def take(*args: Any, **options: Any) -> Any:
        taken.append(None)
        result = method(*args, **options)
        if len(taken) == step:
            signal.raise_signal(number)
        return result

    setattr(trainer, name, take)


def is_told_to_end(train: Any) -> bool:
    """Train with signals received; return whether one ended it."""
    with REQUEST.signals():
        try:
            train()
        except (ToldToEnd, KeyboardInterrupt):
            return True
    return False
