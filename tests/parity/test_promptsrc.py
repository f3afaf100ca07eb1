"""PromptSRC's prompt aggregation and a whole training run."""

from __future__ import annotations

import pytest
import torch

from tests.parity.limits import LOGITS, TRAINING
from tests.parity.test_methods import save_upstream, settings, upstream_state
from tests.parity_files import Recorded, relative_error
from trainers.promptsrc import gaussian_weights


def test_epoch_weights():
    recorded = Recorded("promptsrc_gpa")
    for case in recorded.config["cases"]:
        n, mean, std = case["MAX_EPOCH"], case["GPA_MEAN"], case["GPA_STD"]
        expected = recorded[f"weights/N{n}_mean{mean}_std{std}"].tolist()
        assert gaussian_weights(n, mean, std) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_aggregation(build):
    """The epochs' tensors stand in for a learner's; the trainer's own hook adds them up."""
    recorded = Recorded("promptsrc_gpa")
    shapes = Recorded("promptsrc_training")
    epochs = recorded.named("epoch_params")
    for case in recorded.config["cases"]:
        n, mean, std = case["MAX_EPOCH"], case["GPA_MEAN"], case["GPA_STD"]
        expected = recorded.named(f"aggregated/N{n}_mean{mean}_std{std}")
        if not expected:
            continue
        node = "TRAINER.PROMPTSRC."
        trainer = build(
            "PromptSRC",
            shapes,
            *("OPTIM.MAX_EPOCH", n, node + "GPA_MEAN", float(mean)),
            *(node + "GPA_STD", float(std), "TEST.NO_TEST", True),
        )
        holder = torch.nn.Module()
        for key, value in epochs.items():
            holder.register_parameter(key.replace(".", "_"), torch.nn.Parameter(value[0].clone()))
        trainer.model.learner = trainer._models[trainer.model_name] = holder
        trainer.average = {k: torch.zeros_like(v) for k, v in holder.state_dict().items()}
        for trainer_epoch in range(n):
            trainer.epoch = trainer_epoch
            for key, value in epochs.items():
                getattr(holder, key.replace(".", "_")).data.copy_(value[trainer_epoch])
            trainer.after_epoch()
        for key, value in expected.items():
            assert relative_error(getattr(holder, key.replace(".", "_")), value) < 1e-6


def test_training_run(build, tmp_path):
    recorded = Recorded("promptsrc_training")
    recorded.config["trainer"] = "PromptSRC"
    trainer = build("PromptSRC", recorded, *settings(recorded), "TEST.NO_TEST", True)
    state = upstream_state("PromptSRC", recorded.named("init_param"), len(recorded.classnames))
    trainer.load_model(save_upstream(trainer, state, tmp_path), epoch=7)
    assert trainer.epoch_weights == pytest.approx(recorded["gauss"].tolist(), rel=1e-6)

    learner = trainer.model.learner
    tracked = recorded.named("after_epoch")

    def now(key: str) -> torch.Tensor:
        tensors = learner.text if "text_encoder" in key or "ctx" in key else learner.vision
        return tensors[int(key.split(".")[3]) if "resblocks" in key else 0]

    trainer.num_batches, step = recorded.config["batches_per_epoch"], 0
    for epoch in range(recorded.config["epochs"]):
        trainer.epoch = epoch
        for batch_idx in range(trainer.num_batches):
            trainer.batch_idx = batch_idx
            assert trainer.get_current_lr() == pytest.approx(float(recorded["lr"][step]), rel=1e-9)
            batch = {"img": recorded["images"][batch_idx], "label": recorded["labels"][batch_idx]}
            summary = trainer.forward_backward(batch)
            assert float(summary["loss"]) == pytest.approx(
                float(recorded["loss"][step]), rel=TRAINING
            )
            step += 1
        for key, value in tracked.items():
            assert relative_error(now(key), value[epoch]) < TRAINING, (epoch, key)
        trainer.after_epoch()
    for key, value in recorded.named("final_gpa").items():
        assert relative_error(now(key), value) < TRAINING, key
    with torch.no_grad():
        logits = trainer.model_inference(recorded["images"][0])
    assert relative_error(logits, recorded["final_logits_batch0"]) < max(LOGITS, TRAINING)
