"""Going on with trainers of the engine, files of states, disks that are full, what kills leave."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl.engine.going_on import BEFORE, NEWEST, Position, find_start
from dassl.utils import SettingError, set_random_seed
from support.ending import REQUEST, ToldToEnd
from tests.dassl import toy
from tests.dassl.test_engine import steps
from tests.going_on import differences, end_in_step, is_told_to_end, last_checkpoint

ROOT = Path(__file__).parents[2]


class Drawing(toy.ToyTrainer):
    """Draws random numbers of every kind in its steps, as methods with dropout and mixing do."""

    def forward_backward(self, batch):
        batch["img"] = batch["img"] * torch.rand(1) + np.random.rand()
        return super().forward_backward(batch)


class DrawingXU(toy.ToyTrainerXU):
    """The same; its unlabelled images end twice in an epoch."""

    def forward_backward(self, batch_x, batch_u):
        batch_x["img"] = batch_x["img"] * torch.rand(1)
        return super().forward_backward(batch_x, batch_u)


class OwnEpoch(toy.ToyTrainer):
    """Has an epoch of its own, as trainers for upstream may."""

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            self.forward_backward(batch)


class TwoModels(toy.ToyTrainer):
    """Registers a second model, which is saved after the first."""

    def build_model(self):
        super().build_model()
        self.register_model("second", torch.nn.Linear(2, 2))


CLASSES = (toy.ToyTrainer, Drawing, DrawingXU, OwnEpoch, TwoModels)


@pytest.fixture()
def build(cfg, tmp_path):
    """Function that builds a trainer of a class, whose run is in a folder of its own."""

    def build(kind: type, folder: str, *pairs: object):
        one = cfg.clone()
        one.OUTPUT_DIR = str(tmp_path / folder)
        one.DATALOADER.TRAIN_X.BATCH_SIZE = 3
        if kind is DrawingXU:
            unlabelled = one.DATALOADER.TRAIN_U
            unlabelled.SAME_AS_X, unlabelled.BATCH_SIZE = False, 6
        one.TEST.NO_TEST = True
        one.merge_from_list(list(pairs))
        set_random_seed(3)
        return kind(one)

    return build


def assert_same_end(straight, resumed) -> None:
    for name in straight.get_model_names():
        one, other = (last_checkpoint(t.output_dir, name, 3) for t in (straight, resumed))
        assert not differences(one, other)
    names = {"tensorboard", *straight.get_model_names()}
    assert {path.name for path in Path(resumed.output_dir).iterdir()} == names


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in CLASSES), (Drawing, 2), (DrawingXU, 1)]
)
def test_every_kind_of_trainer_goes_on(build, kind, workers):
    pairs = ("DATALOADER.NUM_WORKERS", workers)
    straight = build(kind, "straight", *pairs)
    straight.train()
    for step in (1, 2, 5)[workers:]:
        trainer = build(kind, "resumed", *pairs)
        end_in_step(trainer, step)
        assert is_told_to_end(trainer.train)
    resumed = build(kind, "resumed", *pairs)
    resumed.train()
    assert_same_end(straight, resumed)


@pytest.mark.parametrize(("kind", "step"), [(DrawingXU, 0), (DrawingXU, 1), (Drawing, 1)])
def test_workers_end_with_their_epoch(build, kind, step):
    """Also those with batches left, while the run's exception is still held."""
    pairs = ("DATALOADER.NUM_WORKERS", 1, "OPTIM.MAX_EPOCH", 1, "TRAIN.COUNT_ITER", "train_u")
    trainer = build(kind, "run", *pairs)
    if step:
        end_in_step(trainer, step)
        with pytest.raises(ToldToEnd) as held, REQUEST.signals():
            trainer.train()
        assert held.tb is not None
    else:
        trainer.train()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("sampler", ["RandomClassSampler", "RandomDomainSampler"])
def test_order_of_every_sampler(build, sampler):
    pairs = ("DATALOADER.TRAIN_X.SAMPLER", sampler, "DATALOADER.TRAIN_X.N_INS", 1)
    pairs += ("DATALOADER.TRAIN_X.BATCH_SIZE", 2)
    straight = build(Drawing, "straight", *pairs)
    straight.train()
    trainer = build(Drawing, "resumed", *pairs)
    end_in_step(trainer, 3)
    assert is_told_to_end(trainer.train)
    resumed = build(Drawing, "resumed", *pairs)
    resumed.train()
    assert_same_end(straight, resumed)


def test_what_is_shown_of_an_epoch_goes_on(build, capsys, monkeypatch):
    """Averages of losses are those of the whole epoch, and TensorBoard has every step once."""

    def lines() -> list[str]:
        out = capsys.readouterr().out
        return [line.partition("loss")[2].partition(" eta")[0] for line in out.splitlines()]

    build(toy.ToyTrainer, "straight").train()
    straight = [line for line in lines() if line]
    trainer = build(toy.ToyTrainer, "resumed")
    end_in_step(trainer, 2)
    assert is_told_to_end(trainer.train)
    now = time.time  # files of TensorBoard are ordered by the second of their creation
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    build(toy.ToyTrainer, "resumed").train()
    assert [line for line in lines() if line] == straight
    assert steps(trainer.cfg)["train/loss"] == list(range(12))


def test_an_epoch_of_ones_own_goes_on_at_its_start(build):
    """It ends at once, and what earlier epochs made is saved on the way out."""
    trainer = build(OwnEpoch, "run")
    end_in_step(trainer, 6)  # the second of the second epoch
    assert is_told_to_end(trainer.train)
    assert find_start(trainer.output_dir, ["linear"]).position == Position(1)


def test_models_saved_in_part_go_on_from_a_common_epoch(build):
    straight = build(TwoModels, "straight")
    straight.train()
    trainer = build(TwoModels, "killed", "TRAIN.CHECKPOINT_FREQ", 1)
    trainer.max_epoch = 2
    trainer.train()
    for name in ("model.pth.tar-2", "checkpoint"):  # as a kill between the two leaves it
        (Path(trainer.output_dir) / "second" / name).unlink()
    (Path(trainer.output_dir) / "second" / "checkpoint").write_text("model.pth.tar-1\n")
    resumed = build(TwoModels, "killed")
    resumed.train()
    assert resumed.start_epoch == 1
    assert_same_end(straight, resumed)


def test_states_come_after_so_many_minutes(build, monkeypatch):
    def states(minutes: float) -> int:
        trainer = build(toy.ToyTrainer, f"every {minutes}", "TRAIN.SAVE_MINUTES", minutes)
        saved, save = [], trainer.going_on.save
        trainer.going_on.save = lambda: (saved.append(1), save())
        trainer.train()
        return len(saved)

    assert states(0) == states(5) == 0, "a run of a second leaves none"
    # at every step, but for the last of all, whose epoch is saved with a number
    assert states(1e-9) == 14


@pytest.mark.parametrize("freq", [0, 1])
def test_a_full_disk_loses_nothing(build, freq):
    """A limit on the size of files stands for it; the run goes on when there is room."""
    pairs = ("TRAIN.SAVE_MINUTES", 1e-9, "TRAIN.CHECKPOINT_FREQ", freq)
    straight = build(toy.ToyTrainer, "straight", *pairs)
    straight.train()
    trainer = build(toy.ToyTrainer, "full", *pairs)
    saves, save = [], trainer.going_on.save

    def save_on_a_full_disk():
        saves.append(1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if len(saves) == 6 - freq:  # with numbered checkpoints no state is due at the first epoch
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    trainer.going_on.save = save_on_a_full_disk
    with pytest.raises(SettingError, match=rf"cannot write .*{NEWEST} .* free.* resumes there"):
        trainer.train()
    assert find_start(trainer.output_dir, ["linear"]).position == Position(1)
    assert not list(Path(trainer.output_dir).rglob("*.tmp*"))
    resumed = build(toy.ToyTrainer, "full", *pairs)
    resumed.train()
    assert_same_end(straight, resumed)


def test_what_a_kill_left_is_removed_by_the_next_start(build):
    trainer = build(toy.ToyTrainer, "run")
    folder = Path(trainer.output_dir)
    other = folder / "a run below" / f"result.json.tmp{'a' * 32}"
    left = [folder / f"{NEWEST}.tmp{'0f' * 16}", folder / "linear" / f"checkpoint.tmp{'12' * 16}"]
    mine = [folder / "notes.tmp", folder / "notes.tmp1", folder / f".tmp{'a' * 32}"]
    for path in (other, *left, *mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    trainer.train()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (other, *mine))


def test_resuming_elsewhere_leaves_no_state_of_another_run(build, tmp_path):
    first = build(toy.ToyTrainer, "first")
    end_in_step(first, 2)
    assert is_told_to_end(first.train)
    second = build(toy.ToyTrainer, "second")
    end_in_step(second, 7)
    assert is_told_to_end(second.train)
    third = build(toy.ToyTrainer, "second", "RESUME", str(tmp_path / "first"))
    end_in_step(third, 1)
    assert is_told_to_end(third.train)
    assert find_start(third.output_dir, ["linear"]).position == Position(0, 3)
    assert Path(first.output_dir, NEWEST).exists() and not Path(third.output_dir, BEFORE).exists()


def test_a_state_of_other_models_or_batches_is_refused(build):
    trainer = build(toy.ToyTrainer, "run")
    end_in_step(trainer, 3)
    assert is_told_to_end(trainer.train)
    with pytest.raises(SettingError, match="trains linear, and this one trains linear, second"):
        build(TwoModels, "run").train()
    with pytest.raises(ValueError, match=rf"{NEWEST} is of an epoch with other batches than the 2"):
        build(toy.ToyTrainer, "run", "DATALOADER.TRAIN_X.BATCH_SIZE", 6).train()


def test_signals_wait_for_what_is_held(monkeypatch):
    """Signals of a scheduler may come twice; whoever presses Ctrl-C twice does not want to wait."""
    with REQUEST.signals():
        with pytest.raises(ToldToEnd, match="SIGUSR1"):
            signal.raise_signal(signal.SIGUSR1)
    with REQUEST.signals():
        REQUEST.holding = True
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        with pytest.raises(ToldToEnd, match="SIGTERM"):
            REQUEST.obey()
        REQUEST.holding = False
        signal.raise_signal(signal.SIGTERM)  # it ends already
    with REQUEST.signals():
        REQUEST.holding = True
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_after_the_work_changes_no_exit_status():
    code = """
import atexit, signal, sys
from support.command_line import run
from support.ending import REQUEST
REQUEST.ends_process = True
def act():
    with REQUEST.signals():
        signal.raise_signal(signal.SIGTERM)
atexit.register(lambda: [signal.raise_signal(n) for n in (signal.SIGTERM, signal.SIGUSR1)])
sys.exit(run(act))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (75, "SIGTERM: interrupted\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_is_really_full(build, tmp_path):
    """A small file system in memory, where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("this system lets nobody mount")
    try:
        straight = build(toy.ToyTrainer, "straight")
        straight.train()
        pairs = ("TRAIN.SAVE_MINUTES", 1e-9)
        with pytest.raises(SettingError, match=rf"No space left on device.*{disk}|cannot write"):
            build(toy.ToyTrainer, "disk/run", *pairs, "TRAIN.CHECKPOINT_FREQ", 1).train()
        start = find_start(str(disk / "run"), ["linear"])
        assert start is not None and not list(disk.rglob("*.tmp*"))
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        resumed = build(toy.ToyTrainer, "disk/run", *pairs)
        resumed.train()
        one, other = (last_checkpoint(t.output_dir, "linear", 3) for t in (straight, resumed))
        assert not differences(one, other)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
