"""MMRL, MMRL++ and CoPrompt: the parts of one step, what evaluation gives, whole training runs."""

from __future__ import annotations

import random

import pytest
import torch

from tests.parity.limits import FEATURES, LOGITS, LOSS, TRAINING
from tests.parity.test_methods import steps
from tests.parity.test_text_prompts import loaded
from tests.parity_files import Recorded, recorded_names, relative_error

#: term of the log -> the recorded loss of that name, without its weight
TERMS = {
    "ce": "loss_ce",
    "ce_rows": "loss_ce_rep",
    "image": "loss_reg_image",
    "text": "loss_reg_text",
}

REPRESENTATIONS = [name for name in steps() if name.startswith("mmrl")]


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_parts_of_a_step(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = loaded(build, recorded, "param", tmp_path)
    model, images = trainer.model, recorded["images"]
    learner, config = model.learner, recorded.config
    made = {"rep_tokens_text": learner.to_text, "rep_tokens_visual": learner.to_image}
    for key, maps in made.items():
        assert relative_error(torch.stack(maps(learner.tokens)), recorded[key]) < FEATURES, key
    rows = model.encode_image(images, learner.image_changes(), 1 + config["N_REP_TOKENS"])
    assert relative_error(rows[:, 1:], recorded["rep_rows"]) < FEATURES
    features = model.project_image(rows[:, 0])
    assert relative_error(features, recorded["image_features_raw"]) < FEATURES
    of_rows = learner.project_rows(model, rows[:, 1:].mean(1))
    assert relative_error(of_rows, recorded["image_features_rep_raw"]) < FEATURES
    # the second projection and, of MMRL++, the layers' maps as matrices
    if "proj_rep" in recorded.arrays:
        second = learner.project_rows(model, torch.eye(rows.shape[-1]))
        assert relative_error(second, recorded["proj_rep"]) < FEATURES
    for key, maps in (("map_r2t", learner.to_text), ("map_r2v", learner.to_image)):
        if key in recorded.arrays:
            units, zero = torch.eye(config["REP_DIM"]), torch.zeros(1, config["REP_DIM"])
            mapped = torch.stack(maps(units)) - torch.stack(maps(zero))  # (L, r, width)
            assert relative_error(mapped.mT, recorded[key]) < FEATURES, key
    assert sum(p.numel() for p in learner.parameters()) == config["learnable_parameters"]

    prediction = model.predict(images)
    for value, key in (
        (prediction.class_logits, "train_logits"),
        (prediction.row_logits, "train_logits_rep"),
        (prediction.logits, "train_logits_fusion"),
    ):
        assert relative_error(value, recorded[key]) < LOGITS, key
    frozen = prediction.frozen()
    assert relative_error(frozen.image_features, recorded["teacher_image"]) < FEATURES
    assert relative_error(frozen.text_features, recorded["teacher_text"]) < FEATURES
    _, terms = trainer.loss(prediction, recorded["labels"])
    assert terms.keys() == TERMS.keys()
    for term, key in TERMS.items():
        assert relative_error(terms[term], recorded[key]) < LOSS, term
    summary = trainer.losses(prediction, recorded["labels"]).summary
    assert float(summary["acc"]) == pytest.approx(float(recorded["train_acc"]))


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_evaluation_of_seen_and_other_classes(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = loaded(build, recorded, "param", tmp_path)
    trainer.set_model_mode("eval")
    model, images = trainer.model, recorded["images"]
    for features, key in (("both", "logits"), ("class", "logits_new"), ("auto", "logits")):
        model.learner.features, model.trained_classes = features, model.classnames
        with torch.no_grad():
            assert relative_error(trainer.model_inference(images), recorded[key]) < LOGITS
    model.trained_classes = model.classnames[:-1]
    with torch.no_grad():
        assert relative_error(trainer.model_inference(images), recorded["logits_new"]) < LOGITS


@pytest.mark.parametrize("name", [name for name in steps() if name.startswith("coprompt")])
def test_parts_of_a_coprompt_step(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = loaded(build, recorded, "param", tmp_path)
    model, learner = trainer.model, trainer.model.learner
    for tower in ("image", "text"):
        adapter, raw = learner.get_submodule(f"adapter_{tower}"), recorded[f"{tower}_features_raw"]
        hidden = adapter.fc[:2](raw)
        assert relative_error(hidden, recorded[f"adapter_{tower}_hidden"]) < FEATURES, tower
        assert relative_error(adapter.fc(raw), recorded[f"adapter_{tower}"]) < FEATURES, tower
        assert adapter.share == recorded.config[f"{tower}_adapter_m"]
    raw = model.encode_text(learner.text_changes())
    assert relative_error(raw, recorded["text_features_raw"]) < FEATURES
    shallow, *deep = [prompt.tokens for prompt in learner.image_changes().prompts()]
    assert relative_error(shallow, recorded["visual_shallow_prompt"]) < FEATURES
    assert relative_error(torch.stack(deep), recorded["visual_deep_prompts"]) < FEATURES
    assert sum(p.numel() for p in learner.parameters()) == recorded.config["learnable_parameters"]
    bank = model.frozen_sentence_features(trainer.sentences())
    assert relative_error(bank, recorded["sentence_features"]) < FEATURES

    random.seed(recorded.config["python_seed_before_step"])
    pair = [recorded["images"], recorded["images2"]]
    image, label = trainer.parse_batch_train({"img": pair, "label": recorded["labels"]})
    assert int(trainer.drawn) == int(recorded["sentence_index"])
    prediction = model.predict(image)
    frozen = prediction.frozen()
    assert relative_error(frozen.image_features, recorded["teacher_image"]) < FEATURES
    assert relative_error(bank[trainer.drawn[0]], recorded["teacher_text"]) < FEATURES
    _, terms = trainer.loss(prediction, label)
    names = {"ce": "loss_ce", "text": "loss_distill_text", "image": "loss_distill_image"}
    for term, key in names.items():
        assert relative_error(terms[term], recorded[key]) < LOSS, term


RUNS = [name for name in recorded_names("mmrl", "coprompt") if name.endswith("_training")]


@pytest.mark.parametrize("name", RUNS)
def test_training_run(build, name, tmp_path):
    recorded = Recorded(name)
    recorded.config["trainer_run"] = recorded.config["registered_as"]
    trainer = loaded(build, recorded, "init_param", tmp_path)
    learner, step = trainer.model.learner, 0
    trainer.num_batches = recorded.config["batches_per_epoch"]
    random.seed(recorded.config.get("python_seed_before_run", 0))

    def assert_learned(tensors: dict[str, torch.Tensor], epoch: int | None = None) -> None:
        found = learner.to_upstream(dict(learner.named_parameters()))
        for key, value in tensors.items():
            expected = value if epoch is None else value[epoch]
            assert relative_error(found[key], expected) < TRAINING, (key, epoch)

    for epoch in range(recorded.config["epochs"]):
        for index in range(trainer.num_batches):
            trainer.batch_idx = index
            assert trainer.get_current_lr() == pytest.approx(float(recorded["lr"][step]), rel=1e-9)
            images = recorded["images"][index]
            if "images2" in recorded.arrays:
                images = [images, recorded["images2"][index]]
            summary = trainer.forward_backward({"img": images, "label": recorded["labels"][index]})
            expected = float(recorded["loss"][step])
            assert float(summary["loss"]) == pytest.approx(expected, rel=TRAINING), step
            step += 1
        assert_learned(recorded.named("after_epoch"), epoch)
    assert_learned(recorded.named("final"))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = trainer.model_inference(recorded["images"][0])
    assert relative_error(logits, recorded["final_logits_batch0"]) < TRAINING
    if "final_logits_new_batch0" in recorded.arrays:
        learner.features = "class"
        with torch.no_grad():
            logits = trainer.model_inference(recorded["images"][0])
        assert relative_error(logits, recorded["final_logits_new_batch0"]) < TRAINING
