"""Epoch loops over labelled, and over labelled and unlabelled, images."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

import torch

from dassl.utils import AverageMeter, MetricMeter, check_availability, ranks

from .base import TrainerBase
from .going_on import Batches
from .simple import SimpleNet, SimpleTrainer

__all__ = ["EpochLog", "SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]


def __getattr__(name: str) -> Any:
    """Import ``SummaryWriter``, which published code takes from here, when it is asked for."""
    if name == "SummaryWriter":
        # TensorBoard takes seconds to import
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class EpochLog:
    """Timing, averages, log lines and scalars of one epoch.

    Tensors that ``forward_backward`` returns are read when a line is due and at the end of the
    epoch, so that the steps between do not wait for the device.
    """

    def __init__(self, trainer: SimpleTrainer) -> None:
        self.trainer = trainer
        self.losses = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        #: scalars that are not written yet: tag, average, step
        self.pending: list[tuple[str, float | torch.Tensor, int]] = []
        self.end = time.time()

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def data_loaded(self) -> None:
        self.data_time.update(time.time() - self.end)

    def step_done(self, summary: Mapping[str, float | torch.Tensor]) -> None:
        """Log a step.

        Args:
            summary: numbers, or tensors with one element, that ``forward_backward`` returned.
        """
        t = self.trainer
        summary = ranks.mean_over_images(summary)
        self.losses.update(summary)
        n_iter = t.run_length.first_step(t.epoch) + t.batch_idx
        for name, meter in self.losses.meters.items():
            self.pending.append((f"train/{name}", meter.average(), n_iter))
        self.pending.append(("train/lr", t.get_current_lr(), n_iter))
        print_freq = t.cfg.TRAIN.PRINT_FREQ
        line_is_due = (t.batch_idx + 1) % print_freq == 0 or t.num_batches < print_freq
        if line_is_due:
            self.flush()  # waits for what the device has left to do, which is part of the time
        self.batch_time.update(time.time() - self.end)
        if line_is_due:
            print(self._line())
        self.end = time.time()

    def flush(self) -> None:
        """Write the pending scalars.

        Raises:
            FloatingPointError: if the average of a loss that came as a tensor is not finite.
        """
        pending, self.pending = self.pending, []
        on_device = [value for _, value, _ in pending if isinstance(value, torch.Tensor)]
        values = iter(torch.stack(on_device).float().cpu() if on_device else ())
        for tag, value, n_iter in pending:
            if isinstance(value, torch.Tensor):
                value = next(values)
                if tag == "train/loss":
                    self.trainer.detect_anomaly(value)
            self.trainer.write_scalar(tag, float(value), n_iter)

    def _line(self) -> str:
        t = self.trainer
        length = t.run_length
        left = length.steps - length.first_step(t.epoch) - t.batch_idx - 1
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * left))
        return " ".join(
            [
                f"epoch [{t.epoch + 1}/{t.max_epoch}]",
                f"batch [{t.batch_idx + 1}/{t.num_batches}]",
                f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f})",
                f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f})",
                f"{self.losses}",
                f"lr {t.get_current_lr():.4e}",
                f"eta {eta}",
            ]
        )


class TrainerX(SimpleTrainer):
    """Trainer for labelled images.

    ``forward_backward(batch)`` of a subclass does one step and calls ``self.end_step()``, or, as in
    Dassl, ``self.update_lr()`` when ``self.batch_idx + 1 == self.num_batches``.
    """

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        self.num_batches = self.run_length.steps_of(self.epoch)
        batches = Batches(self.train_loader_x, most=self.num_batches)
        with EpochLog(self) as log, batches:
            done = self.going_on.begin_steps(log, batches)
            for batch_idx, batch in enumerate(batches, done):
                self.batch_idx = batch_idx
                log.data_loaded()
                self.going_on.step_begins()
                log.step_done(self.forward_backward(batch))
                self.going_on.step_done()

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return images, labels and domains on the device."""
        return tuple(
            batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain")
        )


class TrainerXU(SimpleTrainer):
    """Trainer for labelled and unlabelled images; a loader that ends early starts again.

    ``TRAIN.COUNT_ITER`` sets the length of an epoch: train_x, train_u or smaller_one.
    """

    def steps_per_epoch(self) -> int:
        count = self.cfg.TRAIN.COUNT_ITER
        check_availability(count, ["train_x", "train_u", "smaller_one"], "TRAIN.COUNT_ITER")
        if self.train_loader_u is None:
            raise ValueError(
                f"{type(self).__name__} needs unlabelled images, but data set "
                f"{self.cfg.DATASET.NAME} has none (train_u)"
            )
        len_x, len_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        return lengths[count]

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        self.num_batches = self.run_length.steps_of(self.epoch)
        batches_x = Batches(self.train_loader_x, endless=True)
        batches_u = Batches(self.train_loader_u, endless=True)
        with EpochLog(self) as log, batches_x, batches_u:
            done = self.going_on.begin_steps(log, batches_x, batches_u)
            for batch_idx in range(done, self.num_batches):
                self.batch_idx = batch_idx
                batch_x, batch_u = next(batches_x), next(batches_u)
                log.data_loaded()
                self.going_on.step_begins()
                # its subclasses take two batches
                log.step_done(self.forward_backward(batch_x, batch_u))  # type: ignore[call-arg]
                self.going_on.step_done()

    def parse_batch_train(  # type: ignore[override]  # Dassl's: takes two batches
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return labelled images, their labels, and unlabelled images, on the device."""
        return (
            batch_x["img"].to(self.device, non_blocking=True),
            batch_x["label"].to(self.device, non_blocking=True),
            batch_u["img"].to(self.device, non_blocking=True),
        )
