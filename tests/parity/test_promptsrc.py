"""PromptSRC's prompt aggregation and a whole training run."""

from __future__ import annotations

import pytest
import torch

from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS, TRAINING
from tests.parity.test_methods import save_upstream, settings, steps, upstream_state
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


def learned(learner, key: str) -> torch.Tensor:
    """Our tensor, all blocks of an encoder, that holds the one of a published name."""
    return learner.text if "text_encoder" in key or "ctx" in key else learner.vision


def block(key: str) -> int:
    """Number of the block that a published name belongs to."""
    return int(key.split(".")[3]) if "resblocks" in key else 0


#: term of the log -> what its recorded loss is called, and whether that has its weight
TERMS = {
    "ce": ("ce", True),
    "text": ("scl_text", False),
    "image": ("scl_image", False),
    "logits": ("scl_logits", True),
}


@pytest.mark.parametrize(
    "name", [name for name in steps() if Recorded(name).named("grad_scl_logits")]
)
def test_terms_of_the_loss_and_their_gradients(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = build("PromptSRC", recorded, *settings(recorded))
    state = upstream_state("PromptSRC", recorded.named("param"), len(recorded.classnames))
    trainer.load_model(save_upstream(trainer, state, tmp_path), epoch=7)
    trainer.set_model_mode("train")
    prediction = trainer.model.predict(recorded["images"])
    frozen = prediction.frozen()
    assert relative_error(frozen.text_features, recorded["teacher_text"]) < FEATURES
    assert relative_error(frozen.image_features, recorded["teacher_image"]) < FEATURES
    assert relative_error(frozen.logits, recorded["teacher_logits"]) < LOGITS
    _, terms = trainer.loss(prediction, recorded["labels"])
    assert terms.keys() == TERMS.keys()
    for term, (published, weighted) in TERMS.items():
        expected = recorded[f"loss_{published}" if weighted else f"loss_{published}_unweighted"]
        weight = 1.0 if weighted else recorded.config[f"{term.upper()}_LOSS_WEIGHT"]
        assert relative_error(terms[term], weight * expected) < LOSS, term
        grads = recorded.named(f"grad_{published}")
        assert grads, term
        for key, value in grads.items():
            whole = learned(trainer.model.learner, key)
            (grad,) = torch.autograd.grad(terms[term], whole, retain_graph=True, allow_unused=True)
            grad = torch.zeros_like(whole) if grad is None else grad
            if not value.any():
                assert not grad[block(key)].any(), (term, key)
                continue
            assert relative_error(grad[block(key)], value) < GRADIENTS, (term, key)


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
        return learned(learner, key)[block(key)]

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
