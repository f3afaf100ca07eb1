"""Learning-rate schedules, stepped once per epoch or batch, with an optional warm-up."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from dassl.utils import check_availability, check_range

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
AVAI_WARMUPS = ["linear", "constant"]


class _BaseWarmupScheduler(LRScheduler):
    """Own learning rates for some epochs, then those of another schedule.

    At the switch-over epoch the rate is the inner schedule's present one; from then on each step
    steps the inner schedule.

    Args:
        optimizer: optimiser whose rates are set.
        successor: schedule that takes over, built on the same optimiser.
        warmup_epoch: number of warm-up epochs.
        last_epoch: index of the last finished epoch, -1 at the start.
        verbose: print the rates after every step, as PyTorch's schedules once did.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        self.verbose = verbose
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group in the present warm-up epoch."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return self.warmup_lr()

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)
        if self.verbose:
            for group, lr in enumerate(self.get_last_lr()):
                print(f"Adjusting learning rate of group {group} to {lr:.4e}.")

    def state_dict(self) -> dict[str, Any]:
        """Return plain data only; ``successor`` is the state dict of the inner schedule."""
        state = super().state_dict()
        del state["verbose"]  # a setting of the process, not of the run
        return {**state, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, into this and the inner schedule."""
        state = dict(state_dict)
        self.successor.load_state_dict(state.pop("successor"))
        super().load_state_dict(state)


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """Warm-up at a constant rate ``cons_lr``; see the base class for the other arguments."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self) -> list[float | Tensor]:
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """Warm-up at ``min_lr`` in epoch 0, then at base rate * epoch / warmup_epoch."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self) -> list[float | Tensor]:
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


def build_lr_scheduler(
    optimizer: Optimizer, optim_cfg: Any, updates: int | None = None, per_epoch: int = 1
) -> LRScheduler:
    """Build the schedule that ``optim_cfg`` describes.

    Args:
        optimizer: optimiser whose learning rates are set.
        optim_cfg: node ``OPTIM`` of the configuration; lengths are in epochs. With
            ``WARMUP_RECOUNT`` the inner schedule starts at its own epoch 0 after the warm-up,
            otherwise it counts on from ``WARMUP_EPOCH``.
        updates: how often the schedule is stepped; None for ``MAX_EPOCH``.
        per_epoch: how often it is stepped in an epoch.

    Raises:
        ValueError: for an unknown schedule or warm-up type, step sizes that do not fit, or
            rates below 0; or the length is not in epochs, and ``updates`` is not given.
    """
    name = optim_cfg.LR_SCHEDULER
    check_availability(name, AVAI_SCHEDS, "OPTIM.LR_SCHEDULER")
    if updates is None:
        _check_epochs(optim_cfg)
        updates = optim_cfg.MAX_EPOCH
    check_range(optim_cfg, "OPTIM", 0, math.inf, "MIN_LR" if name == "cosine" else "GAMMA")
    stepsize = optim_cfg.STEPSIZE
    if name == "single_step":
        if stepsize in ((), []):
            raise ValueError("OPTIM.STEPSIZE is empty: list one number of epochs for single_step")
        size = stepsize[-1] if isinstance(stepsize, (list, tuple)) else stepsize
        size = updates if size <= 0 else size * per_epoch
        scheduler: LRScheduler = StepLR(optimizer, step_size=size, gamma=optim_cfg.GAMMA)
    elif name == "multi_step":
        if not isinstance(stepsize, (list, tuple)):
            raise ValueError(
                f"OPTIM.STEPSIZE must be a list of epochs for multi_step, not {stepsize!r}"
            )
        milestones = [size * per_epoch for size in stepsize]
        scheduler = MultiStepLR(optimizer, milestones=milestones, gamma=optim_cfg.GAMMA)
    else:
        # a float, as in the checkpoints of Dassl
        length: Any = float(updates)
        floor = getattr(optim_cfg, "MIN_LR", 0.0)
        scheduler = CosineAnnealingLR(optimizer, T_max=length, eta_min=floor)

    warmup = optim_cfg.WARMUP_EPOCH * per_epoch
    if warmup <= 0:
        return scheduler
    check_availability(optim_cfg.WARMUP_TYPE, AVAI_WARMUPS, "OPTIM.WARMUP_TYPE")
    constant = optim_cfg.WARMUP_TYPE == "constant"
    start = "WARMUP_CONS_LR" if constant else "WARMUP_MIN_LR"
    check_range(optim_cfg, "OPTIM", 0, math.inf, start)
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = warmup
    if constant:
        return ConstantWarmupScheduler(optimizer, scheduler, warmup, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, warmup, optim_cfg.WARMUP_MIN_LR)


def _check_epochs(optim_cfg: Any) -> None:
    """Check that the config sets a length in epochs; trees made elsewhere know no other."""
    for key, epochs in (("MAX_ITERATIONS", 0), ("SCHEDULE_PER", "epoch")):
        if (value := getattr(optim_cfg, key, epochs)) != epochs:
            raise ValueError(
                f"OPTIM.{key} is {value}, and this trainer counts epochs: set it to {epochs}, or "
                "have the trainer build its schedule with build_schedule and call end_step"
            )
