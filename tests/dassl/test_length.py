"""Runs that count training steps, learning rates that change with every batch, short batches."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl.engine.length import RunLength
from dassl.optim import build_optimizer
from dassl.utils import set_random_seed
from tests.dassl import toy
from tests.dassl.test_engine import scalars, steps
from tests.dassl.test_going_on import OwnEpoch
from tests.going_on import differences, end_in_step, is_told_to_end, last_checkpoint

PER_BATCH = ("OPTIM.SCHEDULE_PER", "batch", "OPTIM.WARMUP_EPOCH", -1)
SEVEN = ("OPTIM.MAX_ITERATIONS", 7, "DATALOADER.DROP_LAST", False)  # 3 + 3 + 1 steps


class Counting(toy.ToyTrainer):
    """Builds its schedule, and ends its steps, by the length of the run; draws random numbers."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * toy.SIDE**2, self.num_classes))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = self.build_schedule(self.optim)
        self.register_model("linear", self.model, self.optim, self.sched)
        self.sizes, self.rates = [], []

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        self.sizes.append(len(label))
        self.rates.append(self.get_current_lr())
        loss = nn.functional.cross_entropy(self.model(image * torch.rand(1)), label)
        self.model_backward_and_update(loss)
        self.end_step()
        return {"loss": loss.detach()}


class InStages(Counting):
    """Two stages, of 4 and 3 of 7 steps; the second one has a schedule of its own."""

    def stages(self, length):
        return [length - length // 2, length // 2]

    def begin_stage(self, stage):
        self.optim = self._optims["linear"] = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = self._scheds["linear"] = self.build_schedule(self.optim, stage)


@pytest.fixture
def build(cfg, tmp_path):
    def build(kind, folder, *pairs):
        one = cfg.clone()
        one.OUTPUT_DIR = str(tmp_path / folder)
        one.merge_from_list(list(pairs))
        set_random_seed(3)
        return kind(one)

    return build


def cosine(steps, start=0.05, floor=1e-3):
    return [floor + (start - floor) * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]


def test_a_run_of_seven_steps(build, capsys):
    pairs = (*SEVEN, *PER_BATCH, "OPTIM.MIN_LR", 1e-3, "TEST.FINAL_MODEL", "best_val")
    trainer = build(Counting, "run", *pairs)
    trainer.train()
    assert trainer.sizes == [5, 5, 2, 5, 5, 2, 5]
    assert trainer.rates == pytest.approx(cosine(7), rel=1e-9)
    assert trainer.get_current_lr() == pytest.approx(1e-3, rel=1e-9)
    out = capsys.readouterr().out
    assert re.findall(r"epoch \[(\d)/3\] batch \[(\d/\d)\]", out) == [
        *(("1", f"{i}/3") for i in (1, 2, 3)),
        *(("2", f"{i}/3") for i in (1, 2, 3)),
        ("3", "1/1"),
    ]
    found = steps(trainer.cfg)
    assert found["train/loss"] == list(range(7))
    assert found["val/accuracy"] == [2, 5, 6] and found["test/accuracy"] == [7]
    assert [event.value for event in scalars(trainer.cfg)["train/lr"]][-1] < 4e-3
    saved = {path.name for path in Path(trainer.output_dir, "linear").iterdir()}
    assert saved == {"model.pth.tar-3", "model-best.pth.tar", "checkpoint"}


@pytest.mark.parametrize("kind", [Counting, InStages])
@pytest.mark.parametrize("per", ["epoch", "batch"])
def test_it_goes_on_bit_for_bit_from_every_step(build, kind, per):
    pairs = (*SEVEN, "OPTIM.SCHEDULE_PER", per, "TEST.NO_TEST", True)
    straight = build(kind, "straight", *pairs)
    straight.train()
    last = straight.max_epoch
    for step in range(1, 7):
        trainer = build(kind, f"stopped {step}", *pairs)
        end_in_step(trainer, step)
        assert is_told_to_end(trainer.train)
        resumed = build(kind, f"stopped {step}", *pairs)
        resumed.train()
        assert len(resumed.sizes) == 7 - step
        one, other = (last_checkpoint(t.output_dir, "linear", last) for t in (straight, resumed))
        assert not differences(one, other)


def test_stages_begin_with_an_epoch_and_a_schedule_of_their_own(build):
    trainer = build(InStages, "run", *SEVEN, *PER_BATCH, "OPTIM.MIN_LR", 1e-3)
    trainer.train()
    assert trainer.rates == pytest.approx(cosine(4) + cosine(3), rel=1e-9)
    assert trainer.sizes == [5, 5, 2, 5, 5, 5, 2] and trainer.max_epoch == 3


def test_lengths_of_stages():
    length = RunLength([4, 3, 6], per_epoch=3)
    assert (length.steps, length.epochs) == (13, 5)
    assert [length.steps_of(epoch) for epoch in range(6)] == [3, 1, 3, 3, 3, 0]
    assert [length.first_step(epoch) for epoch in range(6)] == [0, 3, 4, 7, 10, 13]
    assert [length.stage(epoch) for epoch in range(6)] == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("pairs", "rates"),
    [
        # warm-up and steps of the schedule are epochs of two batches
        (("LR_SCHEDULER", "single_step", "STEPSIZE", (2,)), [0.01, 0.01, 1, 1, 1, 1]),
        (("LR_SCHEDULER", "multi_step", "STEPSIZE", (1, 2)), [0.01, 0.01, 1, 1, 0.1, 0.1]),
    ],
)
def test_schedules_per_batch_have_lengths_in_epochs(build, pairs, rates):
    pairs = [f"OPTIM.{x}" if i % 2 == 0 else x for i, x in enumerate(pairs)]
    pairs += ["OPTIM.LR", 1.0, "OPTIM.WARMUP_CONS_LR", 0.01, "OPTIM.SCHEDULE_PER", "batch"]
    trainer = build(Counting, "run", *pairs)
    trainer.train()
    assert trainer.rates == pytest.approx(rates)


def test_steps_for_each_shot(build):
    pairs = ("OPTIM.MAX_ITERATIONS", 3, "OPTIM.ITERATIONS_PER_SHOT", True, "DATASET.NUM_SHOTS", 2)
    trainer = build(Counting, "run", *pairs)
    trainer.train()
    assert len(trainer.sizes) == 6


@pytest.mark.parametrize(
    ("kind", "pairs", "message"),
    [
        (Counting, ("OPTIM.MAX_ITERATIONS", -1), "MAX_ITERATIONS is -1"),
        (Counting, ("OPTIM.SCHEDULE_PER", "step"), "OPTIM.SCHEDULE_PER.*epoch"),
        (Counting, (*SEVEN, "OPTIM.ITERATIONS_PER_SHOT", True), "set DATASET.NUM_SHOTS"),
        (toy.ToyTrainer, SEVEN, "MAX_ITERATIONS is 7.*build_schedule"),
        (toy.ToyTrainer, PER_BATCH, "SCHEDULE_PER is batch.*build_schedule"),
        (OwnEpoch, SEVEN, "own run_epoch"),
    ],
)
def test_lengths_that_cannot_be(build, kind, pairs, message):
    with pytest.raises(ValueError, match=message):
        build(kind, "run", *pairs)
