"""Running averages of training quantities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["AverageMeter", "MetricMeter"]


class AverageMeter:
    """Last value and average of a series.

    Values may be tensors with one element. They stay where they are until ``val``, ``avg`` or
    ``sum`` is read, so that a training step does not wait for the device.

    Args:
        ema: exponential average (0.9 old, 0.1 new) instead of the arithmetic mean.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self._val: float | torch.Tensor = 0.0
        self._avg: float | torch.Tensor = 0.0
        self._sum: float | torch.Tensor = 0.0
        self.count = 0

    @property
    def val(self) -> float:
        """Last value."""
        return float(self._val)

    @property
    def avg(self) -> float:
        """Average."""
        return float(self._avg)

    @property
    def sum(self) -> float:
        """Weighted sum."""
        return float(self._sum)

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Add ``val`` with weight ``n``."""
        if isinstance(val, torch.Tensor):
            val = val.detach().reshape(())
        self._val = val
        self._sum = self._sum + val * n
        self.count += n
        if self.ema:
            self._avg = self._avg * 0.9 + val * 0.1
        else:
            self._avg = self._sum / self.count

    def average(self) -> float | torch.Tensor:
        """Return the average: a tensor on the values' device if these were tensors."""
        return self._avg

    def state(self) -> dict[str, Any]:
        """Return the values as plain data, for :meth:`load_state`."""
        values = {"val": self._val, "avg": self._avg, "sum": self._sum}
        plain = {
            name: value if isinstance(value, torch.Tensor) else float(value)
            for name, value in values.items()
        }
        return {**plain, "count": self.count}

    def load_state(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Go on from what :meth:`state` returned, with tensors on a device."""
        self._val, self._avg, self._sum = (
            value.to(device) if isinstance(value, torch.Tensor) else value
            for value in (state["val"], state["avg"], state["sum"])
        )
        self.count = state["count"]


class MetricMeter:
    """Average meters by name, printed as ``name val (avg)``.

    Args:
        delimiter: text between two names.
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, Any] | None) -> None:
        """Add one value per name; None is ignored.

        Raises:
            TypeError: if ``input_dict`` is not a mapping.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(
                "MetricMeter.update takes a dict of numbers (what forward_backward returns), "
                f"not {type(input_dict).__name__}"
            )
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the meters as plain data, for :meth:`load_state`."""
        return {name: meter.state() for name, meter in self.meters.items()}

    def load_state(
        self, state: Mapping[str, Mapping[str, Any]], device: torch.device | str = "cpu"
    ) -> None:
        """Go on from what :meth:`state` returned, with tensors on a device."""
        for name, values in state.items():
            self.meters[name].load_state(values, device)

    def __str__(self) -> str:
        return self.delimiter.join(
            f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items()
        )
