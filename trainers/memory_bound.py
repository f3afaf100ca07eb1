"""MODEL.MEMORY_GB: how much may be encoded at once."""

from __future__ import annotations

from dassl.config import CfgNode
from dassl.utils import SettingError


class MemoryBound:
    """What a step or a batch may hold beside the weights; false where there is no bound.

    Args:
        gb: 10^9 bytes, 0 for no bound.
    """

    def __init__(self, gb: float) -> None:
        self.bytes = gb * 1e9

    def __bool__(self) -> bool:
        return self.bytes > 0

    def fitting(self, each: float, what: str, share: float = 1.0, beside: float = 0.0) -> int:
        """How many things of ``each`` bytes fit into a share of the memory, ``beside`` others.

        Raises:
            SettingError: not even one; the text calls it ``what``.
        """
        left = share * self.bytes - beside
        if left < each:
            raise SettingError(
                f"MODEL.MEMORY_GB is {self.bytes / 1e9:g}, too little for {what}: use "
                f"{1.01 * (each + beside) / share / 1e9:.3g} or more, or 0 for no bound"
            )
        return int(left // each)


def check_memory(cfg: CfgNode) -> None:
    """Raises: ValueError: MODEL.MEMORY_GB is below 0, or asked of the plain encoders."""
    if cfg.MODEL.MEMORY_GB < 0:
        raise ValueError(
            f"MODEL.MEMORY_GB is {cfg.MODEL.MEMORY_GB}: use 0 (no bound) or what a step may "
            "hold beside the weights, in 10^9 bytes"
        )
    if cfg.MODEL.MEMORY_GB and not cfg.MODEL.FAST_ENCODERS:
        raise ValueError(
            "MODEL.MEMORY_GB bounds the fast encoders only: leave out MODEL.FAST_ENCODERS False"
        )
