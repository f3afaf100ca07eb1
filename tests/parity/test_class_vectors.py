"""CLIP-Adapter, TaskRes, ZS-LP and CLAP: parts of a step, and whole training runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptation.features import FeaturePool
from adaptation.templates import dataset_template
from clip.tokens import tokenize
from tests.parity.limits import FEATURES, LOGITS, LOSS, TRAINING
from tests.parity.test_methods import alone, data_set, give_pool, save_upstream, settings
from tests.parity_files import Recorded, recorded_names, relative_error

OPTIM = {"NAME": "NAME", "lr": "LR", "WEIGHT_DECAY": "WEIGHT_DECAY"}


class FewShotTask:
    """The small task of the recorded training runs: images and labels."""

    def __init__(self) -> None:
        self.recorded = Recorded("fewshot_task")
        self.scale = self.recorded.config["image_scale"]

    def images(self, split: str) -> torch.Tensor:
        return self.recorded[f"{split}_images"].float() / self.scale

    def labels(self, split: str) -> torch.Tensor:
        return self.recorded[f"{split}_labels"]


@pytest.fixture(scope="module")
def task() -> FewShotTask:
    return FewShotTask()


def built(build, recorded: Recorded, task: FewShotTask, *pairs: object):
    """Trainer of a recorded run, whose classes and images are those of the task."""
    for key in ("images", "classnames"):
        source = "train_images" if key == "images" else key
        recorded.arrays.setdefault(key, task.recorded.arrays[source])
    method = recorded.config["trainer"]
    words = [*settings(recorded), *pairs]
    return build(method, recorded, *words, data_set=data_set(recorded))


def load(trainer, recorded: Recorded, params: dict[str, torch.Tensor], folder) -> None:
    """Read tensors from a checkpoint as the published code saves it."""
    state = {alone(key): value for key, value in params.items()}
    for key, _ in trainer.model.learner.named_buffers():
        state[key] = recorded[key]
    trainer.load_model(save_upstream(trainer, state, folder), epoch=7)
    trainer.set_model_mode("train")


def learned(trainer) -> dict[str, torch.Tensor]:
    return dict(trainer.model.learner.named_parameters())


def test_texts_of_clip_adapter(build):
    recorded = Recorded("clip_adapter")
    trainer = build("CLIPAdapter", recorded, *settings(recorded), data_set=data_set(recorded))
    model = trainer.model
    for name, expected in recorded.named("template_text_raw").items():
        model.learner.template = dataset_template(name)
        model.set_classes(recorded.classnames)
        assert relative_error(model.encode_text(), expected) < FEATURES, name


def test_start_of_clip_adapter(build):
    """PyTorch's of linear maps, as the recorded one: uniform within 1 / sqrt(inputs)."""
    recorded = Recorded("clip_adapter")
    trainer = build("CLIPAdapter", recorded, *settings(recorded), data_set=data_set(recorded))
    for key, expected in recorded.named("init").items():
        start = learned(trainer)[alone(key)]
        assert start.shape == expected.shape
        for value in (start.detach(), expected):
            assert 0.9 < float(value.abs().max()) * value.shape[1] ** 0.5 <= 1


def test_parts_of_clip_adapter(build, tmp_path):
    recorded = Recorded("clip_adapter")
    trainer = build("CLIPAdapter", recorded, *settings(recorded), data_set=data_set(recorded))
    load(trainer, recorded, recorded.named("param"), tmp_path)
    learner, raw = trainer.model.learner, recorded["image_features_raw"]
    assert relative_error(learner.fc[:2](raw), recorded["adapter_hidden"]) < FEATURES
    assert relative_error(learner.fc(raw), recorded["adapter_output"]) < FEATURES
    assert relative_error(learner.mix(raw), recorded["mixed_features_raw"]) < FEATURES


@pytest.mark.parametrize("name", [n for n in recorded_names("taskres") if "training" not in n])
def test_parts_of_taskres(build, name, tmp_path):
    recorded = Recorded(name)
    optimiser = recorded.config["optimizer_after_step"]
    pairs = [word for key, value in optimiser.items() for word in (f"OPTIM.{OPTIM[key]}", value)]
    words = [*settings(recorded), *pairs, "OPTIM.WARMUP_EPOCH", -1]
    trainer = build("TaskRes", recorded, *words, data_set=data_set(recorded))
    model, images = trainer.model, recorded["images"]
    assert tuple(recorded.config["templates"]) == model.teacher_templates
    assert relative_error(model.learner.base_text_features, recorded["base_text_features"]) < 2e-5
    texts = [[t.format(n) for n in recorded.classnames] for t in model.teacher_templates]
    ids = torch.stack([tokenize(names, context_length=77) for names in texts])
    assert torch.equal(ids, recorded["tokenized_prompts"].reshape(ids.shape).to(ids))
    with torch.no_grad():
        assert relative_error(trainer.model_inference(images), recorded["init_logits"]) < LOGITS
    load(trainer, recorded, recorded.named("param"), tmp_path)
    with torch.no_grad():
        assert relative_error(trainer.model_inference(images), recorded["logits_eval"]) < LOGITS
    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": images, "label": recorded["labels"]})
    assert relative_error(summary["loss"], recorded["loss"]) < LOSS
    for key, expected in recorded.named("after_step").items():
        before = recorded[f"param/{key}"]
        step = learned(trainer)[alone(key)] - before
        # Adam's first step is the rate times the sign: float32 next to the value sets the limit
        assert float((step - (expected - before)).detach().abs().max()) < 2e-7, key


#: recorded run -> what is recorded of each epoch
RUNS = {"clip_adapter_training": "params_after_epoch", "taskres_training": "residuals_after_epoch"}


@pytest.mark.parametrize("name", RUNS)
def test_training_run(build, name, task, tmp_path):
    recorded = Recorded(name)
    trainer = built(build, recorded, task)
    load(trainer, recorded, recorded.named("init_param"), tmp_path)
    batches, step = recorded["batch_index"], 0
    trainer.num_batches = recorded.config["batches_per_epoch"]
    for epoch in range(recorded.config["epochs"]):
        passes, labels = task.images("train"), task.labels("train")
        views = passes[epoch % len(passes)]
        for index in range(trainer.num_batches):
            trainer.batch_idx, rows = index, batches[epoch, index]
            rate = float(recorded["lr64"][step])
            assert trainer.get_current_lr() == pytest.approx(rate, rel=1e-9)
            summary = trainer.forward_backward({"img": views[rows], "label": labels[rows]})
            expected = float(recorded["losses"][step])
            assert float(summary["loss"]) == pytest.approx(expected, rel=LOSS), step
            step += 1
        after = recorded.named(RUNS[name]) or {"text_feature_residuals": recorded[RUNS[name]]}
        for key, value in after.items():
            assert relative_error(learned(trainer)[alone(key)], value[epoch]) < TRAINING, epoch
    with torch.no_grad():
        logits = trainer.model_inference(task.images("test"))
    assert relative_error(logits, recorded["test_logits"]) < TRAINING


@pytest.mark.parametrize("name", ["zslp", "clap"])
def test_parts_of_clap(build, name, tmp_path):
    recorded = Recorded(name)
    method = recorded.config["trainer"]
    trainer = build(method, recorded, *settings(recorded), data_set=data_set(recorded))
    assert tuple(recorded.config["templates"]) == trainer.model.teacher_templates
    base = recorded["base_text_features"]
    assert relative_error(trainer.model.learner.base_text_features, base) < FEATURES
    assert torch.equal(trainer.model.learner.prototypes, trainer.model.learner.base_text_features)
    load(trainer, recorded, recorded.named("param"), tmp_path)
    give_pool(trainer, recorded)
    labels = recorded["labels"]
    prediction = trainer.predict(recorded["image_features_raw"])
    assert relative_error(prediction.logits, recorded["logits"]) < LOGITS
    loss, terms = trainer.loss(prediction, labels)
    assert relative_error(loss, recorded["loss"]) < LOSS
    if method == "CLAP":
        assert relative_error(trainer.multipliers, recorded["multipliers"]) < LOGITS
        assert relative_error(terms["ce"], recorded["loss_ce"]) < LOSS
        assert relative_error(terms["constraint"], recorded["loss_constraint"]) < LOSS


def clap(build, recorded: Recorded, constraint: str):
    words = [*settings(recorded), "TRAINER.CLAP.CONSTRAINT", constraint]
    trainer = build("CLAP", recorded, *words, data_set=data_set(recorded))
    learner = trainer.model.learner
    learner.base_text_features.copy_(recorded["base_text_features"])
    return trainer


def test_variants_of_clap(build):
    recorded = Recorded("clap")
    variants = recorded.named("multipliers_variant")
    assert len(variants) > 3
    for constraint, expected in variants.items():
        trainer = clap(build, recorded, constraint)
        give_pool(trainer, recorded)
        assert relative_error(trainer.multipliers, expected) < LOGITS, constraint
    cosine = clap(build, recorded, "cosine")
    cosine.model.learner.prototypes.data.copy_(recorded["param/adapter.prototypes"])
    give_pool(cosine, recorded)
    _, terms = cosine.loss(cosine.predict(recorded["image_features_raw"]), recorded["labels"])
    assert relative_error(terms["constraint"], recorded["cosine_constraint"]) < LOSS


def test_extras_of_clap(build, task):
    """ImageNet's texts, and multipliers that grow after every epoch, at fixed prototypes."""
    recorded = Recorded("clap_extras")
    recorded.config["dataset_name_used_for_template"] = "ImageNet"
    recorded.config["trainer"] = "CLAP"
    trainer = built(build, recorded, task, "TRAINER.CLAP.CONSTRAINT", "l2-adaptative")
    model = trainer.model
    assert tuple(recorded.config["templates"]) == model.teacher_templates
    base = recorded["imagenet_base_text_features"]
    assert relative_error(model.learner.base_text_features, base) < FEATURES
    with torch.no_grad():
        logits = trainer.model_inference(recorded["images"])
    assert relative_error(logits, recorded["imagenet_logits"]) < LOGITS

    model.learner.base_text_features.copy_(recorded["base_text_features"])
    model.learner.prototypes.data.copy_(recorded["prototypes"])
    multipliers, rates = recorded["adaptative_multipliers"], recorded["adaptative_penalty"]
    trainer.multipliers, trainer.rate = multipliers[0].clone(), rates[0].clone()
    for expected, rate in zip(multipliers[1:], rates[1:], strict=True):
        trainer.update_multipliers()
        assert relative_error(trainer.multipliers, expected) < LOGITS
        assert relative_error(trainer.rate, rate) < LOGITS


@pytest.mark.parametrize("name", ["zslp_training", "clap_training"])
def test_training_run_on_a_pool(build, name, task):
    """Features and permutations of the recorded run, the latter out of NumPy's generator."""
    recorded = Recorded(name)
    size = recorded.config["batch_size"]
    pairs = ["DATALOADER.TRAIN_X.BATCH_SIZE", size]
    key = "dataset_name_used_for_template"  # which the runs read, and the steps have
    recorded.config[key] = Recorded(name.removesuffix("_training")).config[key]
    trainer = built(build, recorded, task, *pairs)
    learner = trainer.model.learner
    base = recorded["base_text_features"]
    assert relative_error(learner.base_text_features, base) < FEATURES
    passes, features = recorded.config["passes"], recorded["pool_features_raw"]
    encoded = torch.cat([trainer.model.encode_image(views) for views in task.images("train")])
    assert relative_error(encoded, features) < FEATURES
    pool = FeaturePool(features.unflatten(0, (passes, -1)), task.labels("train"))
    assert torch.equal(pool.flat()[1], recorded["pool_labels"])
    trainer.dm.dataset._train_x = [None] * len(pool.labels)
    assert trainer.steps_per_epoch() == recorded.config["batches_per_epoch"]
    trainer.pool = pool
    trainer.take_pool(pool)
    if "multipliers" in recorded.arrays:
        assert relative_error(trainer.multipliers, recorded["multipliers"]) < LOGITS
    np.random.seed(recorded.config["numpy_seed"])
    trainer.num_batches, step = trainer.steps_per_epoch(), 0
    for epoch in range(recorded.config["epochs"]):
        trainer.set_model_mode("train")
        for index, batch in enumerate(trainer.epoch_loader()):
            trainer.batch_idx = index
            chosen = recorded["order"][epoch, index * size : (index + 1) * size]
            assert torch.equal(batch["img"], features[chosen])
            rate = float(recorded["lr64"][step])
            assert trainer.get_current_lr() == pytest.approx(rate, rel=1e-9)
            summary = trainer.forward_backward(batch)
            expected = float(recorded["losses"][step])
            assert float(summary["loss"]) == pytest.approx(expected, rel=LOSS), step
            with torch.no_grad():
                logits = trainer.predict(recorded["test_features_raw"]).logits
            right = float((logits.argmax(dim=-1) == recorded["test_labels"]).float().mean())
            accuracy = float(recorded["test_accuracy_per_step"][step])
            assert min(abs(right - accuracy), abs(100 * right - accuracy)) < 1e-3, step
            step += 1
        expected = recorded["prototypes_after_epoch"][epoch]
        assert relative_error(learner.prototypes, expected) < TRAINING, epoch
    with torch.no_grad():
        logits = trainer.model_inference(task.images("test"))
    assert relative_error(logits, recorded["test_logits"]) < TRAINING
