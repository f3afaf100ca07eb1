"""KgCoOp, TCP and ProGrad: the parts of one step, and whole training runs."""

from __future__ import annotations

import pytest
import torch

from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS, TRAINING
from tests.parity.test_methods import data_set, save_upstream, settings, steps, upstream_state
from tests.parity_files import Recorded, recorded_names, relative_error

#: term of the log -> the recorded loss of that name, without its weight
TERMS = {"ce": "loss_ce", "kg": "loss_kg_unweighted", "kl": "loss_kl"}

pytestmark = pytest.mark.filterwarnings("ignore:TRAINER.KGCOOP")


def loaded(build, recorded: Recorded, params: str, folder):
    """Trainer with the recorded parameters, read from a checkpoint as the published code saves."""
    method = recorded.config.setdefault("trainer", recorded.config.get("trainer_run"))
    trainer = build(method, recorded, *settings(recorded), data_set=data_set(recorded))
    state = upstream_state(method, recorded.named(params), len(recorded.classnames))
    trainer.load_model(save_upstream(trainer, state, folder), epoch=7)
    trainer.set_model_mode("train")
    return trainer


def learned(trainer) -> dict[str, torch.Tensor]:
    return {f"prompt_learner.{k}": v for k, v in trainer.model.learner.named_parameters()}


STEPS = [name for name in steps() if name.startswith(("kgcoop", "tcp", "prograd"))]


@pytest.mark.parametrize("name", STEPS)
def test_parts_of_a_step(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = loaded(build, recorded, "param", tmp_path)
    model = trainer.model
    prediction = model.predict(recorded["images"])
    frozen = model.frozen_text_features()
    assert relative_error(frozen, recorded["teacher_text"]) < FEATURES
    if "teacher_logits" in recorded.arrays:
        teacher = model.logits(prediction.image_features, frozen)
        assert relative_error(teacher, recorded["teacher_logits"]) < LOGITS
    if "class_tokens" in recorded.arrays:
        tokens = model.learner.class_tokens(frozen)
        assert relative_error(tokens, recorded["class_tokens"]) < FEATURES

    losses = trainer.losses(prediction, recorded["labels"])
    _, terms = trainer.loss(prediction, recorded["labels"])
    for term in TERMS.keys() & terms.keys():
        assert relative_error(terms[term], recorded[TERMS[term]]) < LOSS, term
    config = recorded.config
    weights = {"ce": 1.0, "kg": config.get("W", config.get("W_effective")), "kl": 1.0}
    parts = {"ce": losses.loss} if "ce" not in terms else {}
    for term, value in (terms | parts).items():
        expected = recorded.named(f"grad_{term}")
        own = learned(trainer)
        used = [own[key] for key in expected]
        grads = torch.autograd.grad(weights[term] * value, used, retain_graph=True)
        for (key, wanted), grad in zip(expected.items(), grads, strict=True):
            assert relative_error(grad, wanted) < GRADIENTS, (term, key)


@pytest.mark.parametrize("name", recorded_names("prograd_"))
def test_which_steps_are_projected(build, name, tmp_path):
    recorded = Recorded(name)
    if "projected" not in recorded.arrays or recorded["projected"].dim():
        pytest.skip("no single step")
    trainer = loaded(build, recorded, "param", tmp_path)
    gradient = recorded["grad_ce/prompt_learner.ctx"]
    guide = recorded["grad_kl/prompt_learner.ctx"]
    edited = trainer.edit_gradient(gradient, guide)
    assert torch.equal(edited, gradient) != bool(recorded["projected"])
    # only the direction of the guide counts, and a scaled gradient is projected alike
    scaled = trainer.edit_gradient(1024 * gradient, 3 * guide) / 1024
    torch.testing.assert_close(scaled, edited)
    assert torch.equal(trainer.edit_gradient(gradient, 0 * guide), gradient)


#: where arrays of a second run of a file stand: Adam's eps is PyTorch's, not the method's
DEFAULT_EPS = "default_eps"


@pytest.mark.parametrize("name", recorded_names("kgcoop_tr", "tcp_tr", "prograd_tr"))
@pytest.mark.parametrize("run", ["", DEFAULT_EPS])
def test_training_run(build, name, run, tmp_path):
    recorded = Recorded(name)
    if run:
        if not (arrays := recorded.named(run)):
            pytest.skip("one run alone")
        first = {k: v for k, v in recorded.arrays.items() if not k.startswith("after_epoch/")}
        recorded.arrays = first | {key: value.numpy() for key, value in arrays.items()}
        recorded.config["OPTIM"]["ADAM_EPS"] = 1e-8
    trainer = loaded(build, recorded, "init_param", tmp_path)
    losses = {"loss": "loss" if "loss" in recorded.arrays else "loss_ce"}
    losses |= {"kl": "loss_kl"} if "loss_kl" in recorded.arrays else {}
    trainer.num_batches, step = recorded.config["batches_per_epoch"], 0
    for epoch in range(recorded.config["epochs"]):
        for index in range(trainer.num_batches):
            trainer.batch_idx = index
            assert trainer.get_current_lr() == pytest.approx(float(recorded["lr"][step]), rel=1e-9)
            batch = {"img": recorded["images"][index], "label": recorded["labels"][index]}
            summary = trainer.forward_backward(batch)
            for term, array in losses.items():
                expected = float(recorded[array][step])
                assert float(summary[term]) == pytest.approx(expected, rel=TRAINING), (term, step)
            if "ctx_after_each_step" in recorded.arrays:
                expected = recorded["ctx_after_each_step"][step]
                assert relative_error(trainer.model.learner.ctx, expected) < TRAINING
            step += 1
        for key, value in recorded.named("after_epoch").items():
            assert relative_error(learned(trainer)[key], value[epoch]) < TRAINING, (key, epoch)
    with torch.no_grad():
        logits = trainer.model_inference(recorded["images"][0])
    assert relative_error(logits, recorded["final_logits_batch0"]) < TRAINING
