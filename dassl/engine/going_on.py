"""Going on with an unfinished run, also in the middle of an epoch, as if it had never ended.

Beside its numbered checkpoints, an unfinished run keeps its state in two files of its folder: the
newest one and the one before. They are written every ``TRAIN.SAVE_MINUTES``, and when the process
is told to end (:mod:`support.ending`); a run that has finished removes them.

In an epoch, the state holds the random states that its loaders were started with. A run that goes
on starts the loaders from them, drops the batches that were trained on (their order, and the random
states of worker processes, are then as they were), and sets the random state of the last step.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import os.path as osp
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dassl.config import optional
from dassl.utils import load_checkpoint, ranks
from dassl.utils.checkpoint import (
    POINTER,
    DamagedError,
    latest_checkpoint,
    load_newest,
    strip_module,
    unwritable,
    warn_of_damage,
)
from dassl.utils.random_state import get_random_state, set_random_state
from support.ending import REQUEST, ToldToEnd
from support.files import remove_leftovers, replacing

if TYPE_CHECKING:
    from .base import TrainerBase
    from .trainer import EpochLog

__all__ = [
    "Batches",
    "GoingOn",
    "Position",
    "Start",
    "common_position",
    "find_start",
    "saved_in",
]

NEWEST, BEFORE = "unfinished.pth", "unfinished-before.pth"
#: version of the files' layout
LAYOUT = 1


class Position(NamedTuple):
    """How far a run has come: finished epochs, and training steps of the next one."""

    epoch: int
    steps: int = 0


@dataclass
class Start:
    """What a run goes on from.

    Args:
        paths: model name -> file.
        checkpoints: model name -> content of its checkpoint.
        steps: steps of the epoch that are done.
        within: state within the epoch; None at its start.
        is_state: whether it is a state of this module, not a numbered checkpoint.
        seeds: the seeds that were trained together.
    """

    paths: dict[str, str]
    checkpoints: dict[str, dict[str, Any]]
    steps: int = 0
    within: dict[str, Any] | None = None
    is_state: bool = False
    seeds: list[int] | None = None

    @property
    def path(self) -> str:
        """One of the files, to show."""
        return next(iter(self.paths.values()))

    @property
    def position(self) -> Position:
        """How far the run had come."""
        return Position(next(iter(self.checkpoints.values())).get("epoch", 0), self.steps)


def saved_in(directory: str) -> list[str]:
    """Return the files in a run folder that its run goes on from, as far as their names tell.

    Args:
        directory: run folder; it need not exist.

    Raises:
        FileNotFoundError: a checkpoint that the folder names is gone.
    """
    for path in (osp.join(directory, file) for file in (NEWEST, BEFORE)):
        if osp.exists(path):
            return [path]
    folders = [osp.dirname(path) for path in glob.glob(f"{glob.escape(directory)}/*/{POINTER}")]
    return [path for path in map(latest_checkpoint, folders) if path is not None]


def find_start(directory: str, names: Sequence[str], at: Position | None = None) -> Start | None:
    """Find what a run goes on from: the furthest of its state and its numbered checkpoints.

    A damaged file is replaced by the one before it, with a warning.

    Args:
        directory: run folder.
        names: of the models; all of them must have a checkpoint.
        at: the position wanted; None for the furthest.

    Returns:
        The start; None when there is nothing to go on from.

    Raises:
        FileNotFoundError: a checkpoint that the folder names is gone.
        ValueError: no checkpoint can be read, or the state is of other models.
    """
    if not names:
        return None
    found = _read_states(directory, names)
    if at is not None:
        found = [state for state in found if state.position == at]
    numbered = None if found and at is not None else _read_numbered(directory, names, at)
    if numbered is not None and (at is None or numbered.position == at):
        found.append(numbered)
    # of equals the first, which is the newest state
    return max(found, key=lambda start: start.position, default=None)


def _read_states(directory: str, names: Sequence[str]) -> list[Start]:
    """Return the states in a folder that can be read, the newest one first."""
    damaged: dict[str, DamagedError] = {}
    states = []
    for path in (osp.join(directory, file) for file in (NEWEST, BEFORE)):
        try:
            states.append(_read_state(path, names))
        except FileNotFoundError:
            continue
        except DamagedError as error:
            damaged[path] = error
    for path, why in damaged.items():
        instead = states[0].path if states else "what else there is, or from its beginning"
        warn_of_damage(path, why, instead)
    return states


def _read_state(path: str, names: Sequence[str]) -> Start:
    content = load_checkpoint(path)
    if not isinstance(content, dict) or "layout" not in content:
        raise DamagedError(f"{path} is not the state of a run")
    if content["layout"] > LAYOUT:
        raise ValueError(f"{path} was written by a newer version of this toolbox: update it")
    models = content["models"]
    if set(models) != set(names):
        raise ValueError(
            f"{path} is of a run that trains {', '.join(models)}, and this one trains "
            f"{', '.join(names)}: give it another output folder, or remove the file"
        )
    return Start(
        paths=dict.fromkeys(names, path),
        checkpoints={name: models[name] for name in names},
        steps=content["steps"],
        within=content["within"],
        is_state=True,
        seeds=content["seeds"],
    )


def _read_numbered(directory: str, names: Sequence[str], at: Position | None) -> Start | None:
    """Return the newest numbered checkpoints of the same epoch that all models have."""
    most = None if at is None else at.epoch
    while True:
        newest = {name: load_newest(osp.join(directory, name), most) for name in names}
        found = {name: one for name, one in newest.items() if one is not None}
        if len(found) < len(names):
            return None
        # a run that was killed while it saved has saved some of its models only
        epochs = {checkpoint.get("epoch", 0) for _, checkpoint in found.values()}
        if len(epochs) == 1:
            return Start(
                paths={name: path for name, (path, _) in found.items()},
                checkpoints={name: checkpoint for name, (_, checkpoint) in found.items()},
            )
        most = min(epochs)


def common_position(runs: Sequence[tuple[str, Sequence[str]]], seeds: list[int]) -> Position | None:
    """Return the furthest position that seeds trained together can all go on from.

    A kill while they save leaves some of them further on than others. Trained alone to where the
    others are, a seed would have other roundings than in their common steps.

    Args:
        runs: folder and model names of each seed.
        seeds: the seeds.

    Returns:
        The position; None where these seeds have not been trained together, or share none.
    """
    common: set[Position] = set()
    for number, (directory, names) in enumerate(runs):
        states = [state for state in _read_states(directory, names) if state.seeds == seeds]
        if not states:
            return None
        positions = {state.position for state in states}
        numbered = _read_numbered(directory, names, None)
        while numbered is not None:
            positions.add(numbered.position)
            below = Position(numbered.position.epoch - 1)
            numbered = _read_numbered(directory, names, below) if below.epoch > 0 else None
        common = common & positions if number else positions
    return max(common, default=None)


class Batches:
    """Batches of a loader in one epoch, with what it takes to come back to one of them.

    As a context it ends the loader's workers where it ends. An iterator that something still holds,
    as the frames of an exception do, is left to Python's collector of cycles. That takes apart the
    queues to the workers before it tells these to end, and then waits for them in vain.

    Args:
        loader: loader of the batches.
        endless: start the loader again when it ends.
        most: number of batches after which they end; None for all.
    """

    def __init__(self, loader: Any, endless: bool = False, most: int | None = None) -> None:
        self.loader, self.endless = loader, endless
        self._left = itertools.repeat(None) if most is None else itertools.repeat(None, most)
        #: random states that the loader was started with
        self.starts: list[dict[str, Any]] = []
        self._earlier: list[dict[str, Any]] = []
        self._batches: Iterator[Any] | None = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._start()
        assert self._batches is not None
        try:
            next(self._left)
            return next(self._batches)
        except StopIteration:
            if not self.endless:
                self.end()  # with its workers, if there are batches left
                raise
        self._start()
        return next(self._batches)

    def _start(self) -> None:
        if self._earlier:
            set_random_state(self._earlier.pop(0))
        self.starts.append(get_random_state())
        self._batches = iter(self.loader)

    def skip(self, number: int, starts: Sequence[dict[str, Any]]) -> None:
        """Drop the first batches of an epoch.

        Args:
            number: how many.
            starts: the random states that the loader was started with when they were trained on.
        """
        self._earlier = list(starts)
        for _ in range(number):
            next(self)
        self._earlier = []

    def end(self) -> None:
        """Have no batch left, without loading any."""
        self._batches, self.endless = iter(()), False


class GoingOn:
    """State of a trainer's run: saves it, and goes on from it.

    A trainer with a ``run_epoch`` of its own has states between epochs only.

    Args:
        trainer: the trainer. Nothing is saved before :meth:`enable`.
    """

    def __init__(self, trainer: TrainerBase) -> None:
        self.trainer = trainer
        self.folder: str | None = None
        #: the position to go on from; None for the furthest
        self.wanted: Position | None = None
        #: the seeds that are trained together
        self.seeds: list[int] | None = None
        #: what the run goes on from, until it does
        self.start: Start | None = None
        self.position = Position(0)
        self._log: EpochLog | None = None
        self._batches: Sequence[Batches] = ()
        # a state in memory, for when evaluation is interrupted
        self._kept: bytes | None = None
        self._numbered_epochs = 0
        self._epoch_began = 0.0
        self._interval: float | None = None
        self._due = 0.0

    # --- where the run goes on ------------------------------------------------------------------

    def enable(self, cfg: Any) -> None:
        """Save states from here on; called when the trainer knows where it goes on.

        Args:
            cfg: configuration of the run.
        """
        self.folder = cfg.OUTPUT_DIR
        minutes = optional(cfg, "TRAIN.SAVE_MINUTES")
        self._interval = 60 * minutes if minutes > 0 else None
        self._restart_clock()
        ranks.barrier()  # all have read what is there
        for name in ("", *self.trainer.get_model_names()) if ranks.is_main() else ():
            remove_leftovers(osp.join(self.folder, name))
        if cfg.RESUME and osp.abspath(cfg.RESUME) != osp.abspath(self.folder):
            self.remove()  # of a run that this one takes the place of
        elif self.start is not None and osp.basename(self.start.path) == BEFORE and ranks.is_main():
            # the newest one is damaged, or further on than that of another seed
            os.replace(self.start.path, osp.join(self.folder, NEWEST))
        self.position = Position(self.trainer.start_epoch)
        if self.start is not None:
            self.position = self.start.position

    def begin_epoch(self) -> None:
        """Note the start of an epoch, and go on from a state between epochs."""
        self._epoch_began = time.perf_counter()
        self._log, self._batches = None, ()
        if self.start is not None and self.start.is_state and self.start.within is None:
            # once more, since preparations of the training may draw random numbers
            self.trainer.restore_start(self.start)
            self.start = None

    def begin_steps(self, log: EpochLog, *batches: Batches) -> int:
        """Note what the steps of the epoch work with, and go on from a state within the epoch.

        Args:
            log: of the epoch.
            batches: of every loader.

        Returns:
            the number of steps that are done; their batches are dropped.

        Raises:
            SettingError, ValueError: the epoch of the state had more steps than this one.
        """
        self._log, self._batches = log, batches
        start, self.start = self.start, None
        if start is None or start.within is None:
            return 0
        t, within = self.trainer, start.within
        if start.steps > t.num_batches or len(within["starts"]) != len(batches):
            raise ValueError(
                f"{start.path} is of an epoch with other batches than the {t.num_batches} of this "
                "run: give it the settings of that one, or another output folder"
            )
        for one, starts in zip(batches, within["starts"], strict=True):
            if start.steps < t.num_batches:
                one.skip(start.steps, starts)
            else:
                one.starts = starts
                one.end()
        # again, since the preparations of an epoch may change what is trained
        t.restore_start(start)
        log.losses.load_state(within["losses"], t.device)
        self._epoch_began -= within["seconds"]
        return start.steps

    # --- what the run has done ------------------------------------------------------------------

    def step_begins(self) -> None:
        """Note that a step is taken, which is finished before the process ends."""
        REQUEST.holding = self.folder is not None

    def note_step(self) -> None:
        """Note that a step is done, which is lost unless it is saved."""
        t = self.trainer
        self.position = Position(t.epoch, t.batch_idx + 1)
        self._kept = None

    def step_done(self) -> None:
        """Note a step; save if it is time to, and end if the process was told to."""
        self.note_step()
        if self.is_due():
            self.save()
            REQUEST.obey()

    def is_due(self) -> bool:
        """Return whether the state is to be saved now."""
        # a signal comes to the processes of a run at different steps, and they end after the same
        REQUEST.number = ranks.largest(REQUEST.number or 0) or None
        return REQUEST.number is not None or (
            self._interval is not None and time.monotonic() >= self._due
        )

    def epoch_seconds(self) -> float:
        """Return the seconds of this epoch, with those of earlier starts."""
        return time.perf_counter() - self._epoch_began

    def steps_done(self) -> None:
        """Note the end of an epoch's steps; what follows need not be finished to end the run."""
        t: Any = self.trainer
        evaluates = getattr(t, "chosen_on", None) is not None and not t.cfg.TEST.NO_TEST
        if self._batches and evaluates:
            self._keep()

    def note_epoch(self) -> None:
        """Note that an epoch is done, with the work after its steps."""
        self.position = Position(self.trainer.epoch + 1)
        self._log, self._batches = None, ()
        self._kept, REQUEST.holding = None, self.folder is not None
        if self.has_numbered:
            self._is_saved()

    @property
    def has_numbered(self) -> bool:
        """Whether there are numbered checkpoints of this position."""
        return self.position == Position(self._numbered_epochs)

    def epoch_done(self) -> None:
        """Note the end of an epoch, as :meth:`step_done` does that of a step."""
        counts_steps = bool(self._batches)
        self.note_epoch()
        if not self.has_numbered:
            if self.is_due():
                self.save()
            elif not counts_steps:
                self._keep()
        REQUEST.obey()

    def note_numbered(self, epochs: int) -> None:
        """Note that checkpoints of so many finished epochs are saved."""
        self._numbered_epochs = epochs

    # --- files ----------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Save what is kept if the process is told to end in this context."""
        try:
            yield
        except (KeyboardInterrupt, ToldToEnd):
            if self._kept is not None:
                self._write(self._kept)
            raise
        finally:
            self._kept, REQUEST.holding = None, False

    def save(self) -> None:
        """Write the state.

        Raises:
            SettingError: it cannot be written; the ones before are kept.
        """
        REQUEST.holding = True
        self._write(self._content())

    def remove(self) -> None:
        """Remove the states of a run that has finished."""
        if self.folder is not None and ranks.is_main():
            for file in (BEFORE, NEWEST):
                with suppress(FileNotFoundError):
                    os.remove(osp.join(self.folder, file))

    def _keep(self) -> None:
        if self.folder is not None:
            self._kept = self._content()
            REQUEST.holding = False

    def _is_saved(self) -> None:
        self._kept, REQUEST.holding = None, False
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._due = time.monotonic() + (self._interval or 0.0)

    def _content(self) -> bytes:
        t, within = self.trainer, None
        if self._log is not None and self.position.steps:
            self._log.flush()  # which checks that the losses are finite
            within = {
                "starts": [batches.starts for batches in self._batches],
                "losses": self._log.losses.state(),
                "seconds": self.epoch_seconds(),
            }
        t.flush_writer()
        models = {}
        for name in t.get_model_names():
            state = t.checkpoint_state(name, self.position.epoch - 1)
            models[name] = {**state, "state_dict": strip_module(state["state_dict"])}
        content = {"layout": LAYOUT, "models": models, "steps": self.position.steps}
        buffer = io.BytesIO()
        torch.save({**content, "within": within, "seeds": self.seeds}, buffer)
        return buffer.getvalue()

    def _write(self, data: bytes) -> None:
        if self.folder is None:
            return
        if not ranks.is_main():
            return self._is_saved()
        newest = osp.join(self.folder, NEWEST)
        try:
            with replacing(newest, durable=True) as temporary:
                temporary.write_bytes(data)
                if osp.exists(newest):
                    os.replace(newest, osp.join(self.folder, BEFORE))
        except OSError as error:
            raise unwritable(newest, error) from error
        self._is_saved()
