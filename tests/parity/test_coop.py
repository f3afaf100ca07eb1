"""A whole training run of CoOp."""

from __future__ import annotations

import pytest

from tests.parity.limits import TRAINING
from tests.parity.test_methods import save_upstream, settings, upstream_state
from tests.parity_files import Recorded, relative_error


def test_training_run(build, tmp_path):
    recorded = Recorded("coop_training")
    recorded.config["trainer"] = "CoOp"
    trainer = build("CoOp", recorded, *settings(recorded))
    state = upstream_state("CoOp", recorded.named("init_param"), len(recorded.classnames))
    trainer.load_model(save_upstream(trainer, state, tmp_path), epoch=7)

    trainer.num_batches, step = recorded.config["batches_per_epoch"], 0
    for _ in range(recorded.config["epochs"]):
        for batch_idx in range(trainer.num_batches):
            trainer.batch_idx = batch_idx
            lr, expected_lr = trainer.get_current_lr(), float(recorded["lr"][step])
            assert lr == pytest.approx(expected_lr, rel=1e-9)
            batch = {key: recorded[f"{key}s"][batch_idx] for key in ("image", "label")}
            summary = trainer.forward_backward({"img": batch["image"], "label": batch["label"]})
            assert float(summary["loss"]) == pytest.approx(
                float(recorded["loss"][step]), rel=TRAINING
            )
            assert float(summary["acc"]) == pytest.approx(float(recorded["acc_percent"][step]))
            ctx, expected = trainer.model.learner.ctx, recorded["ctx_after_each_step"][step]
            assert relative_error(ctx, expected) < TRAINING
            step += 1
    assert step == len(recorded["loss"])
