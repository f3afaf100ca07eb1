"""How long a run is: its training steps, cut into stages and epochs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dassl.config import optional
from dassl.utils import check_availability

__all__ = ["RunLength", "check_length", "iterations"]

SCHEDULES_PER = ["epoch", "batch"]


def check_length(cfg: Any) -> None:
    """Check the keys that say how long a run is, and how often its learning rate changes.

    Raises:
        ValueError: a value cannot be, or ``ITERATIONS_PER_SHOT`` is set for all images.
    """
    check_availability(optional(cfg, "OPTIM.SCHEDULE_PER"), SCHEDULES_PER, "OPTIM.SCHEDULE_PER")
    if iterations(cfg) < 0:
        raise ValueError(
            f"OPTIM.MAX_ITERATIONS is {cfg.OPTIM.MAX_ITERATIONS}: use a number of training steps "
            "from 1 on, or 0 for OPTIM.MAX_EPOCH epochs"
        )


def iterations(cfg: Any) -> int:
    """Return the number of training steps that the config sets; 0 where it sets epochs.

    Raises:
        ValueError: the number is for each shot, and the run takes all images.
    """
    number = optional(cfg, "OPTIM.MAX_ITERATIONS")
    if not number or not optional(cfg, "OPTIM.ITERATIONS_PER_SHOT"):
        return number
    if cfg.DATASET.NUM_SHOTS < 1:
        raise ValueError(
            f"OPTIM.ITERATIONS_PER_SHOT: {number} training steps for each shot need a number of "
            "shots: set DATASET.NUM_SHOTS, or OPTIM.ITERATIONS_PER_SHOT False and the steps of the "
            "whole run as OPTIM.MAX_ITERATIONS"
        )
    return number * cfg.DATASET.NUM_SHOTS


@dataclass(frozen=True)
class RunLength:
    """Training steps of a run. Every stage begins with an epoch; its last one may be shorter.

    Args:
        stages: steps of each stage.
        per_epoch: steps of an epoch that is not cut short.
    """

    stages: Sequence[int]
    per_epoch: int

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return sum(self.stages)

    @property
    def epochs(self) -> int:
        """Number of epochs, also of those that are cut short."""
        return sum(map(self.epochs_of, range(len(self.stages))))

    def epochs_of(self, stage: int) -> int:
        """Return the number of epochs of a stage."""
        return -(-self.stages[stage] // self.per_epoch)

    def stage(self, epoch: int) -> int:
        """Return the stage that an epoch, counted from 0, belongs to; the last one from its end."""
        ends = itertools.accumulate(map(self.epochs_of, range(len(self.stages))))
        return next((i for i, end in enumerate(ends) if epoch < end), len(self.stages) - 1)

    def first_step(self, epoch: int) -> int:
        """Return how many steps of the run there are in front of an epoch, counted from 0."""
        done = 0
        for stage, steps in enumerate(self.stages):
            own = min(epoch, self.epochs_of(stage))
            done += min(own * self.per_epoch, steps)
            epoch -= own
        return done

    def steps_of(self, epoch: int) -> int:
        """Return the number of steps of an epoch, counted from 0."""
        return self.first_step(epoch + 1) - self.first_step(epoch)
