"""Training of several seeds of one method in one process, with one pass of the frozen CLIP.

Every seed has a trainer of its own, built and run as if it were alone in the process: with its own
images, learner, optimiser, schedule, random state, log and checkpoints. Only the forward and the
backward pass are shared (``predict_together``). A seed's result is therefore that of its single
run, to rounding, and single runs can resume and test its checkpoints, and the other way round.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dassl.config import CfgNode
from dassl.engine import SimpleTrainer
from dassl.engine.going_on import Batches, GoingOn, common_position
from dassl.engine.trainer import EpochLog
from dassl.utils.logger import LabelledStream
from dassl.utils.random_state import get_random_state, set_random_state
from support.ending import REQUEST

from .memory_check import check_runs
from .together import predict_together
from .trainer import PromptTrainer, backward


def check_trains_together(trainer: Any, cfg: CfgNode) -> None:
    """Check that seeds of a trainer can share their training steps.

    Args:
        trainer: class of the trainer.
        cfg: the config of one of the seeds.

    Raises:
        ValueError: the trainer has its own training loop or step, its steps draw random numbers, or
            ``OPTIM.CUDA_GRAPH`` is set.
    """
    names = ("train", "run_epoch", "forward_backward", "train_on", "predict", "step")
    shared = {name: getattr(PromptTrainer, name) for name in names}
    own = [name for name, method in shared.items() if getattr(trainer, name, method) is not method]
    if own:
        raise ValueError(
            f"--seeds: {trainer.__name__} has its own {' and '.join(own)}, so its seeds cannot be "
            "trained together: run them one by one with --seed"
        )
    if trainer.changes_blocks:
        raise ValueError(
            f"--seeds: {trainer.__name__} changes blocks of the encoders inside, not prompts "
            "alone, so its seeds cannot share a pass: run them one by one with --seed"
        )
    if key := trainer.draws_in_steps(cfg):
        raise ValueError(
            f"--seeds: training steps of {trainer.__name__} draw random numbers, which seeds "
            f"trained together would share: set {key} 0, or run the seeds one by one with --seed"
        )
    if cfg.OPTIM.CUDA_GRAPH:
        raise ValueError(
            "--seeds: OPTIM.CUDA_GRAPH captures the step of one seed: set it to False, or run the "
            "seeds one by one with --seed"
        )


class Batch(NamedTuple):
    """Batch of one seed on the device: images, labels, and the loader's names of the views."""

    image: Tensor
    label: Tensor
    views: list[str] | None


class SeedRun:
    """A seed's trainer with its own standard output and random state.

    Args:
        seed: seed of the run, shown in front of its lines on the console and in its errors.
        build: builds the trainer; may set the random state and copy standard output to a log.
    """

    def __init__(self, seed: int, build: Callable[[], SimpleTrainer]) -> None:
        self.seed = seed
        self.output: Any = LabelledStream(sys.stdout, f"[seed {seed}] ")
        self.random = get_random_state()
        with self.own_state():
            # a PromptTrainer where it trains; others can be tested
            self.trainer: Any = build()

    @contextmanager
    def own_output(self) -> Iterator[None]:
        """Use the seed's standard output in this context, and name the seed in errors."""
        outside, sys.stdout = sys.stdout, self.output
        try:
            yield
        except Exception as error:
            # the argument of a KeyError is usually a key, not a text
            if not isinstance(error, KeyError) and isinstance(next(iter(error.args), 0), str):
                error.args = (f"seed {self.seed}: {error.args[0]}", *error.args[1:])
            raise
        finally:
            self.output, sys.stdout = sys.stdout, outside

    @contextmanager
    def own_state(self) -> Iterator[None]:
        """Use the seed's standard output and random state in this context."""
        with self.own_output():
            set_random_state(self.random)
            try:
                yield
            finally:
                self.random = get_random_state()

    def begin_epoch(self, epoch: int) -> None:
        """Prepare the trainer and its loader for an epoch."""
        with self.own_state():
            self.trainer.epoch = epoch
            self.going_on.begin_epoch()
            self.trainer.before_epoch()
            self.trainer.set_model_mode("train")
            self.trainer.num_batches = self.trainer.run_length.steps_of(epoch)
            self.log = EpochLog(self.trainer)
            batches = Batches(self.trainer.train_loader_x, most=self.trainer.num_batches)
            self.loaded = batches
            done = self.going_on.begin_steps(self.log, batches)
            self.batches = enumerate(batches, done)

    def next_batch(self) -> Batch | None:
        """Return the next batch, on the device; ``None`` after the last."""
        with self.own_state():
            index, batch = next(self.batches, (None, None))
            if batch is None:
                return None
            self.trainer.batch_idx = index
            self.log.data_loaded()
            image, label = self.trainer.parse_batch_train(batch)
            return Batch(image, label, batch.get("view"))

    @property
    def going_on(self) -> GoingOn:
        """State that the run goes on from."""
        return self.trainer.going_on

    def save(self) -> None:
        """Save the state that the run goes on from."""
        with self.own_state():
            self.going_on.save()

    def end_epoch(self) -> None:
        """End the loader's workers, and write the pending scalars of the epoch's log."""
        self.loaded.end()
        with self.own_output():
            self.log.flush()


class SeveralSeeds:
    """Several seeds of one method, trained or tested with one frozen CLIP.

    Args:
        builds: seed -> function that builds its trainer. The settings of all are the same except
            for the seed and the folders.
    """

    def __init__(self, builds: Mapping[int, Callable[[], SimpleTrainer]]) -> None:
        self.runs: list[SeedRun] = []
        for seed, build in builds.items():
            run = SeedRun(seed, build)
            if self.runs and isinstance(run.trainer, PromptTrainer):
                run.trainer.model.share_frozen(self.runs[0].trainer.model)
            self.runs.append(run)

    def test(self) -> list[float]:
        """Test the seeds one after the other.

        Returns:
            the first result of every seed's evaluator (accuracy in percent).
        """
        results = []
        for run in self.runs:
            with run.own_state():
                results.append(run.trainer.test())
                run.trainer.run_notes.on_end()
        return results

    def train(self) -> None:
        """Train all seeds to their last epoch, from where they were interrupted together.

        Seeds that have no such place in common go on from the last checkpoint of each.

        Raises:
            ValueError: see ``check_trains_together``, or the data set is for tests only.
            FloatingPointError: a loss is not finite; the text names the seed.
            RuntimeError: a training step draws random numbers.
        """
        check_trains_together(type(self.runs[0].trainer), self.runs[0].trainer.cfg)
        self.runs[0].trainer.check_training_images()
        check_runs([run.trainer for run in self.runs], training=True)
        for run in self.runs:
            run.trainer.memory_is_checked = True
        self._find_common_start()
        for run in self.runs:
            with run.own_state():
                run.trainer.before_train()
        for run in self.runs:
            run.trainer.run_notes.on_start()
        self._save_first()
        start = time.perf_counter()
        first = min(run.trainer.start_epoch for run in self.runs)
        with ExitStack() as stack:
            for run in self.runs:
                stack.enter_context(run.going_on.running())
            for epoch in range(first, max(run.trainer.max_epoch for run in self.runs)):
                # a seed that has already trained this epoch, or its last one, waits for the others
                runs = [
                    run
                    for run in self.runs
                    if run.trainer.start_epoch <= epoch < run.trainer.max_epoch
                ]
                run_epoch(runs, epoch)
                end_epoch(runs)
        training_seconds = time.perf_counter() - start
        for run in self.runs:
            run.trainer.run_notes.training_seconds = training_seconds
            with run.own_state():
                run.trainer.after_train()
                run.trainer.run_notes.on_end()
        for run in self.runs:
            run.going_on.remove()

    def _find_common_start(self) -> None:
        """Have seeds that were interrupted together go on together, where all of them can."""
        seeds = [run.seed for run in self.runs]
        folders = [
            (run.trainer.cfg.RESUME or run.trainer.cfg.OUTPUT_DIR, run.trainer.get_model_names())
            for run in self.runs
        ]
        position = common_position(folders, seeds)
        for run in self.runs:
            run.going_on.wanted, run.going_on.seeds = position, seeds

    def _save_first(self) -> None:
        """Save where seeds begin: what all can go on from if they are killed while they save."""
        for run in self.runs:
            start, trainer = run.going_on.start, run.trainer
            is_known = start is not None and start.is_state
            if len(self.runs) > 1 and not is_known and trainer.start_epoch < trainer.max_epoch:
                run.save()


def save_if_due(runs: Sequence[SeedRun]) -> None:
    """Save the state of all seeds if it is time to, and end if the process was told to."""
    if any(run.going_on.is_due() for run in runs):
        for run in runs:
            run.save()
        REQUEST.obey()


def end_epoch(runs: Sequence[SeedRun]) -> None:
    """Do the work of seeds after the steps of an epoch."""
    for run in runs:
        run.trainer.run_notes.epoch_seconds.append(run.going_on.epoch_seconds())
        with run.own_state():
            run.going_on.steps_done()
    for run in runs:
        with run.own_state():
            run.trainer.after_epoch()
    for run in runs:
        run.going_on.note_epoch()
    if not all(run.going_on.has_numbered for run in runs):
        save_if_due(runs)
    REQUEST.obey()


def run_epoch(runs: Sequence[SeedRun], epoch: int) -> None:
    """Train seeds for one epoch; a seed with fewer batches ends earlier.

    Raises:
        FloatingPointError: a loss is not finite; the text names the seed.
        RuntimeError: a training step draws random numbers.
    """
    with ExitStack() as stack:
        for run in runs:
            run.begin_epoch(epoch)
            stack.callback(run.end_epoch)
        for step in itertools.count():
            due = [(run, run.next_batch()) for run in runs]
            batches = [(run, batch) for run, batch in due if batch is not None]
            if not batches:
                return
            for run, _ in batches:
                run.going_on.step_begins()
            with _forbid_random_draws(runs[0]) if step == 0 else nullcontext():
                joint_step(batches)
            for run, _ in batches:
                run.going_on.note_step()
            save_if_due(runs)


@contextmanager
def _forbid_random_draws(run: SeedRun) -> Iterator[None]:
    """Check that nothing in this context uses PyTorch's random generators, which seeds share.

    Raises:
        RuntimeError: they were used.
    """

    def states() -> list[Tensor]:
        state = get_random_state()
        return [state["torch"], *state["cuda"]]

    before = states()
    yield
    if not all(map(torch.equal, before, states())):
        raise RuntimeError(
            f"--seeds: a training step of {type(run.trainer).__name__} draws random numbers, and "
            "seeds trained together would share them: run them one by one with --seed"
        )


def joint_step(batches: Sequence[tuple[SeedRun, Batch]]) -> None:
    """Take one optimiser step of every seed on its batch."""
    predictions = predict_together(
        [run.trainer.model for run, _ in batches],
        [batch.image for _, batch in batches],
        [batch.views for _, batch in batches],
    )
    losses = []
    for (run, batch), prediction in zip(batches, predictions, strict=True):
        with run.own_output():
            losses.append(run.trainer.losses(prediction, batch.label))
    backward([run.trainer for run, _ in batches], losses)
    for (run, _), each in zip(batches, losses, strict=True):
        with run.own_output():
            run.trainer.update()
            run.trainer.end_step()
            run.log.step_done(each.summary)
