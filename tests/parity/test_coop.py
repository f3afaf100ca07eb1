"""CoOp through its trainer: features, logits, loss, gradients, and a whole training run."""

from __future__ import annotations

import pytest
import torch

from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS, TRAINING
from tests.parity_files import Recorded, recorded_names, relative_error

SETTINGS = ("N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION")


def settings(recorded: Recorded) -> list[object]:
    pairs = [(f"TRAINER.COOP.{key}", recorded.config.get(key)) for key in SETTINGS]
    return [word for key, value in pairs if value is not None for word in (key, value)]


def load(trainer, recorded: Recorded, folder, ctx: torch.Tensor) -> None:
    """Give the trainer a checkpoint as upstream's code writes it, embedded class names included."""
    n_cls, width = len(recorded.classnames), ctx.shape[-1]
    state = {
        "ctx": ctx,
        "token_prefix": torch.zeros(n_cls, 1, width),
        "token_suffix": torch.zeros(n_cls, 76 - ctx.shape[-2], width),
    }
    path = folder / "upstream" / "prompt_learner"
    path.mkdir(parents=True)
    keys = {"optimizer": None, "scheduler": None, "val_result": None}
    torch.save({"state_dict": state, "epoch": 7, **keys}, path / "model.pth.tar-7")
    trainer.load_model(str(path.parent), epoch=7)


@pytest.mark.filterwarnings("ignore:TRAINER.COOP")
@pytest.mark.parametrize("name", [n for n in recorded_names("coop") if n != "coop_training"])
def test_step(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = build("CoOp", recorded, *settings(recorded))
    learner = trainer.model.learner
    start = recorded.named("init").get("prompt_learner.ctx")
    if start is not None:
        assert torch.equal(learner.ctx, start)
    load(trainer, recorded, tmp_path, recorded["param/prompt_learner.ctx"])

    images, labels = recorded["images"], recorded["labels"]
    prediction = trainer.model.predict(images)
    raw = trainer.model.clip.encode_text(trainer.model.text, learner.text_prompts())
    assert relative_error(raw, recorded["text_features_raw"]) < FEATURES
    raw = trainer.model.clip.encode_image(images)
    assert relative_error(raw, recorded["image_features_raw"]) < FEATURES
    assert relative_error(prediction.text_features, recorded["text_features"]) < FEATURES
    assert relative_error(prediction.image_features, recorded["image_features"]) < FEATURES
    assert relative_error(prediction.logits, recorded["logits"]) < LOGITS
    with torch.no_grad():
        assert relative_error(trainer.model_inference(images), recorded["logits"]) < LOGITS

    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": images, "label": labels})
    assert relative_error(torch.tensor(summary["loss"]), recorded["loss"]) < LOSS
    assert relative_error(learner.ctx.grad, recorded["grad/prompt_learner.ctx"]) < GRADIENTS


def test_training_run(build, tmp_path):
    recorded = Recorded("coop_training")
    optim = {
        "SGD_" + k if k in ("NESTEROV",) else k: v for k, v in recorded.config["OPTIM"].items()
    }
    optim["SGD_DAMPNING"] = optim.pop("DAMPENING")
    pairs = [word for key, value in optim.items() for word in (f"OPTIM.{key}", value)]
    trainer = build("CoOp", recorded, *settings(recorded), *pairs)
    load(trainer, recorded, tmp_path, recorded["init_param/prompt_learner.ctx"])

    trainer.num_batches, step = recorded.config["batches_per_epoch"], 0
    for _ in range(recorded.config["epochs"]):
        for batch_idx in range(trainer.num_batches):
            trainer.batch_idx = batch_idx
            lr, expected_lr = trainer.get_current_lr(), float(recorded["lr"][step])
            assert lr == pytest.approx(expected_lr, rel=1e-9)
            batch = {key: recorded[f"{key}s"][batch_idx] for key in ("image", "label")}
            summary = trainer.forward_backward({"img": batch["image"], "label": batch["label"]})
            assert summary["loss"] == pytest.approx(float(recorded["loss"][step]), rel=TRAINING)
            assert summary["acc"] == pytest.approx(float(recorded["acc_percent"][step]))
            ctx, expected = trainer.model.learner.ctx, recorded["ctx_after_each_step"][step]
            assert relative_error(ctx, expected) < TRAINING
            step += 1
    assert step == len(recorded["loss"])
