"""Bookkeeping of models, optimisers and checkpoints around an abstract training loop."""

from __future__ import annotations

import os.path as osp
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dassl.utils import (
    load_checkpoint,
    print_detail,
    ranks,
    save_checkpoint,
    tolist_if_not,
)
from dassl.utils.checkpoint import BEST, NUMBERED, model_to_test, restore
from dassl.utils.random_state import get_random_state, set_random_state

from .going_on import GoingOn, Start, find_start
from .ranks import check_still_together, shared_training
from .run_notes import RunNotes
from .trackers import open_trackers

__all__ = ["TrainerBase"]


#: what to do against numbers that are not finite
LESS = "Lower OPTIM.LR, or clip gradients where the method can (OPTIM.CLIP_GRAD_NORM)"


class TrainerBase:
    """Base class of all trainers.

    Subclasses register their models, and implement ``run_epoch`` and the other abstract methods.
    """

    #: whether several processes may share a batch: its loss is a mean over images, plus terms that
    #: do not depend on the batch
    splits_batches = False

    # set by `train` and, while an epoch runs, by `run_epoch`
    device: Any
    start_epoch: int
    epoch: int
    num_batches: int
    batch_idx: int

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self.run_notes = RunNotes()
        self.going_on = GoingOn(self)

    # --- models ---------------------------------------------------------------------------------

    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Register a model with its optimiser and learning-rate schedule.

        Args:
            name: name, also of its checkpoint folder.
            model: module.
            optim: optimiser, or None for a model that does not learn.
            sched: schedule, or None.

        Raises:
            AttributeError: if called before ``super().__init__()``.
            ValueError: if the name is taken.
        """
        if self.__dict__.get("_models") is None:
            raise AttributeError("register_model() was called before super().__init__()")
        if name in self._models:
            raise ValueError(f"a model named {name!r} is already registered")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """Return the given name(s) as a list, or all registered names.

        Raises:
            KeyError: for a name that is not registered.
        """
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(f"no model named {name!r}; registered: {', '.join(self._models)}")
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switch registered models to "train" or to "eval" (also "test") mode.

        Raises:
            ValueError: for another mode.
        """
        if mode not in ("train", "eval", "test"):
            raise ValueError(f"mode must be train, eval or test, not {mode!r}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # --- checkpoints ----------------------------------------------------------------------------

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save every registered model to ``<directory>/<name>/``, in the main process.

        Args:
            epoch: index of the finished epoch, from 0; stored as ``epoch + 1``.
            directory: run folder.
            is_best: also copy to ``model-best.pth.tar``.
            val_result: validation result in percent.
            model_name: file name; empty means ``model.pth.tar-<epoch + 1>``.

        Raises:
            FloatingPointError: a trained parameter is infinite or NaN, as the last step may leave
                it; nothing is saved.
        """
        if not all(parameter.isfinite().all() for parameter in self.trained_parameters()):
            raise FloatingPointError(f"Trained parameters are infinite or NaN! {LESS}")
        for name in self.get_model_names() if ranks.is_main() else ():
            save_checkpoint(
                self.checkpoint_state(name, epoch, val_result),
                osp.join(directory, name),
                is_best=is_best,
                model_name=model_name,
            )
        self.flush_writer()
        ranks.barrier()  # what is read next is there
        if not model_name:
            self.going_on.note_numbered(epoch + 1)

    def checkpoint_state(
        self, name: str, epoch: int, val_result: float | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint; subclasses may add entries of plain data.

        Args:
            name: registered model.
            epoch: index of the finished epoch, from 0.
            val_result: validation result in percent.
        """
        optim, sched = self._optims[name], self._scheds[name]
        return {
            "state_dict": self._models[name].state_dict(),
            "epoch": epoch + 1,
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            "val_result": None if val_result is None else float(val_result),
            "trainer_state": self.trainer_state(),
        }

    def trainer_state(self) -> dict[str, Any]:
        """Return what an exact continuation needs besides models, optimisers and schedules.

        These are the random states, the history of the run and, where there is one, the gradient
        scale.
        """
        state: dict[str, Any] = {"random": get_random_state(), "history": self.run_notes.history()}
        scaler = getattr(self, "scaler", None)
        if scaler is not None:
            state["scaler"] = scaler.state_dict()
        return state

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`trainer_state` returned."""
        set_random_state(state["random"])
        if "history" in state:  # older checkpoints have none
            self.run_notes.load_history(state["history"])
        scaler = getattr(self, "scaler", None)
        # A disabled scaler has an empty state, which an enabled one refuses.
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from what a run folder has furthest: an unfinished epoch, or checkpoints.

        Args:
            directory: run folder with one folder per registered model.

        Returns:
            Index of the next epoch, or of the unfinished one; 0 when there is nothing to resume.

        Raises:
            ValueError: a checkpoint is damaged.
        """
        start = find_start(directory, self.get_model_names(), self.going_on.wanted)
        if start is None:
            print_detail("No checkpoint found, train from scratch")
            return 0
        self.check_start(start)
        print(f"Found checkpoint at {directory} (will resume training)")
        for path in dict.fromkeys(start.paths.values()):
            print_detail(f'Loading checkpoint from "{path}"')
        self.restore_start(start)
        self.going_on.start = start
        epoch, steps = start.position
        print(f"Previous epoch: {epoch}" + (f", and {steps} steps of the next" if steps else ""))
        return epoch

    def check_start(self, start: Start) -> None:
        """Check that the run can go on from a start; this class accepts any.

        Raises:
            ValueError: it cannot.
        """

    def restore_start(self, start: Start) -> None:
        """Load models, optimisers, schedules and the trainer's state."""
        for name, checkpoint in start.checkpoints.items():
            restore(checkpoint, self._models[name], self._optims[name], self._scheds[name])
        if "trainer_state" in checkpoint:
            try:
                self.load_trainer_state(checkpoint["trainer_state"])
            except Exception as error:  # what has other types than were written raises anything
                text = " ".join(str(error).split())
                raise ValueError(
                    f"{start.paths[name]} is damaged: its trainer_state cannot be restored "
                    f"({type(error).__name__}: {text})"
                ) from error

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of every registered model (strictly).

        Args:
            directory: run folder; empty does nothing.
            epoch: number of finished epochs; None loads ``model-best.pth.tar`` or, where the run
                chose no best model, the last one.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = osp.join(directory, name, BEST if epoch is None else f"{NUMBERED}{epoch}")
            if epoch is None:
                path = model_to_test(osp.join(directory, name)) or path
            if not osp.exists(path):
                raise FileNotFoundError(f'No model at "{path}"')
            checkpoint = load_checkpoint(path)
            val_result = checkpoint.get("val_result")
            shown = "none" if val_result is None else f"{val_result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={shown})")
            self._models[name].load_state_dict(checkpoint["state_dict"])
            self.run_notes.note_loaded(checkpoint)

    def trained_parameters(self) -> list[torch.Tensor]:
        """Return what the run trains: what the registered optimisers change."""
        optimisers = [optimiser for optimiser in self._optims.values() if optimiser is not None]
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        return [p for group in groups for p in group["params"] if p.requires_grad]

    # --- steps ----------------------------------------------------------------------------------

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the learning-rate schedules."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        """Raise ``FloatingPointError`` unless the loss is finite."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"Loss is infinite or NaN! {LESS}")

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        """Clear the gradients."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        """Check that the loss is finite and compute gradients."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        """Step the optimisers."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(
        self, loss: torch.Tensor, names: str | list[str] | None = None
    ) -> None:
        """Clear gradients, check the loss, compute gradients, step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # --- trackers -------------------------------------------------------------------------------

    def init_writer(self, log_dir: str, purge_step: int | None = None) -> None:
        """Open the trackers of ``TRAIN.TRACKERS``, in the main process, unless they are open.

        Args:
            log_dir: folder of TensorBoard's files.
            purge_step: step that the run goes on at; what earlier files of the folder hold from
                there on is not shown any more.
        """
        if self._writer is None and ranks.is_main():
            self._writer = open_trackers(getattr(self, "cfg", None), log_dir, purge_step)

    def close_writer(self) -> None:
        """Close the trackers if they are open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def flush_writer(self) -> None:
        """Have the TensorBoard writer write what it holds back."""
        if self._writer is not None:
            self._writer.flush()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a scalar to the trackers; do nothing before :meth:`init_writer`."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def write_result(self, metrics: Any) -> None:
        """Write the metrics of the final test to the trackers that show a result of a run."""
        if self._writer is not None and isinstance(metrics, Mapping):
            self._writer.add_result(metrics)

    # --- loop -----------------------------------------------------------------------------------

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from ``start_epoch`` (which ``before_train`` may change)."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        self.run_notes.on_start()
        start = time.perf_counter()
        with shared_training(self), self.going_on.running():
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.going_on.begin_epoch()
                self.before_epoch()
                check_still_together(self)
                self.run_epoch()
                self.run_notes.epoch_seconds.append(self.going_on.epoch_seconds())
                self.going_on.steps_done()
                self.after_epoch()
                self.going_on.epoch_done()
        self.run_notes.training_seconds = time.perf_counter() - start
        self.after_train()
        self.going_on.remove()

    def before_train(self) -> None:
        """Run before the first epoch."""

    def after_train(self) -> None:
        """Run after the last epoch."""

    def before_epoch(self) -> None:
        """Run before every epoch."""

    def after_epoch(self) -> None:
        """Run after every epoch."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def test(self) -> Any:
        """Evaluate the model."""
        raise NotImplementedError

    def parse_batch_train(self, batch: Any) -> Any:
        """Take from a training batch what the step needs, on the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        """Take from a test batch what inference needs, on the device."""
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> Mapping[str, float | torch.Tensor]:
        """Do one training step and return numbers to log."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        """Return the model's output for a test input."""
        raise NotImplementedError
