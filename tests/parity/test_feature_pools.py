"""Tip-Adapter, Tip-Adapter-F and LP++: steps, grids, chosen pairs, step sizes and training runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.features import FeaturePool
from adaptation.image_cache import grid
from clip.tokens import tokenize
from dassl.engine import config_node
from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS, TRAINING
from tests.parity.test_class_vectors import FewShotTask, task  # noqa: F401  a fixture
from tests.parity.test_methods import data_set
from tests.parity_files import Recorded, recorded_names, relative_error

#: recorded settings of the optimiser -> keys
OPTIM = {"lr": "LR", "eps": "ADAM_EPS", "weight_decay": "WEIGHT_DECAY", "epochs": "MAX_EPOCH"}


@pytest.fixture()
def make(build, task, monkeypatch):  # noqa: F811
    """Function that builds the trainer of a recorded file on the images of the small task."""

    def make(recorded: Recorded, *pairs: object, **options: object):
        for key, source in (("images", "train_images"), ("classnames", "classnames")):
            recorded.arrays.setdefault(key, task.recorded.arrays[source])
        config, method = recorded.config, recorded.config["trainer"]
        key = "dataset_name_used_for_template"  # of some files it is that of the cache
        config.setdefault(key, Recorded("tip_adapter").config[key])
        known = {key.upper(): value for key, value in config.items()}
        words = [("OPTIM.LR_SCHEDULER", "cosine"), ("OPTIM.WARMUP_EPOCH", -1)]
        words += [(f"OPTIM.{key}", config[name]) for name, key in OPTIM.items() if name in config]
        if "optimizer" in config:
            words += [("OPTIM.NAME", config["optimizer"].lower())]
            words += [(f"OPTIM.ADAM_BETA{i}", beta) for i, beta in enumerate(config["betas"], 1)]
        node = f"TRAINER.{config_node(method)}"
        mine = build_keys(method)
        words += [(f"{node}.{key}", known[key]) for key in mine if key in known]
        flat = [word for pair in words for word in pair]
        trainer = build(
            method, recorded, *flat, *pairs, **{"data_set": data_set(recorded), **options}
        )
        model = trainer.model

        def split_features(split: str) -> tuple[Tensor, Tensor]:
            return model.raw_image_features(task.images(split)), task.labels(split)

        monkeypatch.setattr(trainer, "split_features", split_features)
        passes = [model.raw_image_features(images) for images in task.images("train")]
        trainer.pool = FeaturePool(torch.stack(passes), task.labels("train"))
        model.learner.set_n_images(len(trainer.pool.labels))
        trainer.set_model_mode("train")
        return trainer

    return make


def build_keys(method: str) -> list[str]:
    from dassl.config import CfgNode
    from dassl.engine import TRAINER_REGISTRY

    trainer = TRAINER_REGISTRY.get(method)
    cfg = CfgNode({"TRAINER": CfgNode()})
    trainer.extend_cfg(cfg)
    return list(cfg.TRAINER[trainer.node])


@torch.no_grad()
def logits(trainer, images: Tensor) -> Tensor:
    trainer.set_model_mode("eval")
    return trainer.model_inference(images)


def assert_texts(trainer, recorded: Recorded, ids: str, weights: str) -> None:
    model = trainer.model
    names = [name.replace("_", " ") for name in recorded.classnames]
    texts = [[template.format(name) for name in names] for template in model.teacher_templates]
    found = torch.stack([tokenize(each, context_length=77) for each in texts])
    assert torch.equal(found, recorded[ids].reshape(found.shape).to(found))
    assert relative_error(model.learner.text_weights.t(), recorded[weights]) < FEATURES


@pytest.mark.parametrize("name", recorded_names("tip_adapter"))
@pytest.mark.parametrize("prefix", ["", "imagenet/"])
def test_cache_and_search(make, task, name, prefix):  # noqa: F811
    recorded = Recorded(name)
    if f"{prefix}val_accuracy_grid" not in recorded.arrays or "best_epoch" in recorded.arrays:
        pytest.skip("no cache without training, or no texts of ImageNet, in this file")
    options = {"data_set": "ImageNet"} if prefix else {}
    trainer = make(recorded, **options)
    learner, n_classes = trainer.model.learner, len(recorded.classnames)
    assert_texts(trainer, recorded, f"{prefix}tokenized_prompts", f"{prefix}text_weights")
    raw = trainer.pool.features
    assert relative_error(raw, recorded["train_features_raw"]) < FEATURES
    trainer.start_from(trainer.pool)
    assert relative_error(learner.keys.t(), recorded["cache_keys"]) < FEATURES
    assert torch.equal(F.one_hot(learner.labels, n_classes).float(), recorded["cache_values"])

    images = {"": recorded["images"], "val_": task.images("val"), "test_": task.images("test")}
    for split, pixels in images.items():
        expected = recorded[f"{prefix}{split}logits"]
        assert relative_error(logits(trainer, pixels), expected) < LOGITS, split

    scale, steps = recorded.config["search_scale"], recorded.config["search_step"]
    betas, alphas = map(grid, scale, steps)
    np.testing.assert_allclose(betas, recorded["beta_list64"], rtol=1e-12)
    np.testing.assert_allclose(alphas, recorded["alpha_list64"], rtol=1e-12)
    counts = learner.count_correct(*trainer.split_features("val"), betas, alphas)
    accuracies = 100 * torch.from_numpy(counts) / len(recorded["val_labels"])
    other = (accuracies - recorded[f"{prefix}val_accuracy_grid"]).abs() > 1e-3
    assert other.float().mean() <= 0.005
    assert trainer.finish()
    chosen = trainer.run_notes.selection
    pair = torch.tensor(list(chosen["values"].values()), dtype=torch.float64)
    assert relative_error(pair, recorded[f"{prefix}best_beta_alpha64"]) < 1e-9
    for split, pixels in images.items():
        expected = recorded[f"{prefix}{split}logits_best"]
        assert relative_error(logits(trainer, pixels), expected) < LOGITS, split


@pytest.mark.parametrize("name", recorded_names("tip_adapter_f"))
def test_step_of_the_keys(make, name):
    recorded = Recorded(name)
    if "loss" not in recorded.arrays:
        pytest.skip("no single step")
    trainer = make(recorded)
    learner, images = trainer.model.learner, recorded["images"]
    assert_texts(trainer, recorded, "tokenized_prompts", "text_weights")
    learner.keys.data.copy_(recorded["param/adapter.weight"])
    learner.labels.copy_(recorded["cache_values"].argmax(dim=1))
    prediction = trainer.model.predict(images)
    raw = trainer.model.raw_image_features(images)
    assert relative_error(raw, recorded["image_features_raw"]) < FEATURES
    assert relative_error(prediction.image_features, recorded["image_features"]) < FEATURES
    assert relative_error(prediction.logits, recorded["logits"]) < LOGITS
    assert relative_error(logits(trainer, images), recorded["logits_eval"]) < LOGITS
    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": images, "label": recorded["labels"]})
    assert relative_error(summary["loss"], recorded["loss"]) < LOSS
    assert relative_error(learner.keys.grad, recorded["grad/adapter.weight"]) < GRADIENTS
    assert relative_error(learner.keys, recorded["after_step/adapter.weight"]) < FEATURES


@pytest.mark.parametrize("name", recorded_names("tip_adapter_f_training"))
def test_training_of_the_keys(make, task, name):  # noqa: F811
    """The published choice of the epoch, on test images, and the pair of that epoch's keys."""
    recorded = Recorded(name)
    n_steps, n_epochs = recorded.config["batches_per_epoch"], recorded.config["epochs"]
    size, n_passes = len(task.recorded.classnames), len(task.recorded["train_images"])
    trainer = make(
        recorded,
        *("OPTIM.SCHEDULE_PER", "batch", "DATALOADER.TRAIN_X.BATCH_SIZE", size),
        *("TRAINER.TIPADAPTER.FRESH_VIEWS", False, "TRAINER.TIPADAPTER.AUGMENT_EPOCH", n_passes),
        *("TEST.FINAL_MODEL", "best_test"),
        copies=n_steps,
    )
    trainer.start_from(trainer.pool)
    learner, trainer.num_batches = trainer.model.learner, trainer.steps_per_epoch()
    assert trainer.num_batches == n_steps
    assert relative_error(learner.keys.t(), recorded["cache_keys"]) < FEATURES
    step = 0
    for trainer.epoch in range(n_epochs):
        loader = trainer.epoch_loader()
        for trainer.batch_idx in range(n_steps):
            rate = float(recorded["lr64"][step])
            assert trainer.get_current_lr() == pytest.approx(rate, rel=1e-9)
            rows = recorded["batch_index"][trainer.epoch, trainer.batch_idx]
            batch = {"img": loader.features[rows], "label": loader.labels[rows]}
            loss = trainer.forward_backward(batch)["loss"]
            assert relative_error(loss, recorded["losses"][step]) < TRAINING
            if step == 0:
                assert relative_error(learner.keys.grad, recorded["grad_first_step"]) < GRADIENTS
            step += 1
        expected = recorded["weights_after_epoch"][trainer.epoch]
        assert relative_error(learner.keys, expected) < TRAINING
        accuracy = trainer.accuracy("test")
        expected = float(recorded["test_accuracy_per_epoch"][trainer.epoch])
        assert accuracy == pytest.approx(expected, abs=1e-3)
        trainer.keep_best()
    trainer.load_model(trainer.output_dir)
    assert trainer.run_notes.loaded_epoch - 1 == int(recorded["best_epoch"])
    assert trainer.finish()
    pair = torch.tensor(list(trainer.run_notes.selection["values"].values()), dtype=torch.float64)
    assert relative_error(pair, recorded["best_beta_alpha64"]) < 1e-9
    found = logits(trainer, task.images("test"))
    assert relative_error(found, recorded["test_logits_best"]) < TRAINING
    expected = float(recorded["test_accuracy_after_search"])
    assert trainer.accuracy("test") == pytest.approx(expected, abs=1e-3)
    betas, alphas = map(grid, recorded.config["search_scale"], recorded.config["search_step"])
    counts = learner.count_correct(*trainer.split_features("val"), betas, alphas)
    accuracies = 100 * torch.from_numpy(counts) / len(recorded["val_labels"])
    assert ((accuracies - recorded["val_accuracy_grid"]).abs() > 1e-3).float().mean() <= 0.005


def learned(trainer) -> dict[str, Tensor]:
    return dict(trainer.model.learner.named_parameters())


@pytest.mark.parametrize("name", recorded_names("lppp"))
def test_step_of_the_probe(make, name):
    recorded = Recorded(name)
    if "loss" not in recorded.arrays:
        pytest.skip("no single step")
    imagenet = make(recorded, data_set="ImageNet").model.learner.text_weights
    assert relative_error(imagenet.t(), recorded["imagenet_text_weights"]) < FEATURES
    trainer = make(recorded)
    assert_texts(trainer, recorded, "tokenized_prompts", "text_weights")
    for key, value in recorded.named("param").items():
        learned(trainer)[key].data.copy_(value)
    prediction = trainer.model.predict(recorded["images"])
    assert relative_error(prediction.logits, recorded["logits"]) < LOGITS
    assert relative_error(prediction.image_features, recorded["image_features"]) < FEATURES
    assert relative_error(prediction.text_features, recorded["text_features"]) < FEATURES
    loss, _ = trainer.loss(prediction, recorded["labels"])
    assert relative_error(loss, recorded["loss"]) < LOSS
    loss.backward()
    for key, value in recorded.named("grad").items():
        assert relative_error(learned(trainer)[key].grad, value) < GRADIENTS, key


@pytest.mark.parametrize("name", recorded_names("lppp_training"))
def test_training_of_the_probe(make, task, name):  # noqa: F811
    recorded = Recorded(name)
    config = recorded.config
    assert make(recorded).node_cfg.ALPHA_EVERY == config["alpha_every"]
    trainer = make(
        recorded,
        *("OPTIM.NAME", "sgd", "OPTIM.MOMENTUM", config["momentum"], "OPTIM.WEIGHT_DECAY", 0.0),
        *("OPTIM.LR", 1.0, "OPTIM.LR_SCHEDULER", "single_step", "TEST.FINAL_MODEL", "best_val"),
    )
    trainer.pool = FeaturePool(trainer.pool.features[:1], trainer.pool.labels)
    unit = F.normalize(trainer.pool.features[0], dim=-1)
    assert relative_error(unit, recorded["train_features"]) < FEATURES
    trainer.start_from(trainer.pool)
    for group, key in zip(trainer.optim.param_groups, ("lr_w64", "lr_alpha64"), strict=True):
        assert group["lr"] == pytest.approx(float(recorded[key]), rel=1e-5)
    start = recorded.named("init")
    assert relative_error(learned(trainer)["weight"], start["weight"]) < FEATURES
    # a mean of similarities that may nearly cancel
    assert float((learned(trainer)["alpha"] - start["alpha"]).detach().abs().max()) < 1e-3
    bound = learned(trainer)["weight"].shape[1] ** -0.5
    assert 0.1 * bound < float(learned(trainer)["bias"].detach().abs().max()) <= bound
    for key, value in start.items():
        learned(trainer)[key].data.copy_(value)

    trainer.num_batches, trainer.batch_idx = trainer.steps_per_epoch(), 0
    kept = dict(
        zip(
            recorded["recorded_epochs"].tolist()
            if "recorded_epochs" in recorded.arrays
            else config["recorded_epochs"],
            range(len(recorded["weights"])),
            strict=True,
        )
    )
    for trainer.epoch in range(config["epochs"]):
        epoch = trainer.epoch
        (batch,) = trainer.epoch_loader()
        if epoch == 0:
            found = trainer.predict(batch["img"]).logits
            assert relative_error(found, recorded["logits_first_epoch"]) < LOGITS
        loss = trainer.forward_backward(batch)["loss"]
        assert relative_error(loss, recorded["losses"][epoch]) < TRAINING, epoch
        if epoch == 0:
            for key in ("weight", "bias"):
                expected = recorded[f"grad_first_epoch/{key}"]
                assert relative_error(learned(trainer)[key].grad, expected) < GRADIENTS, key
            first = recorded["grad_first_epoch/alpha"]
            assert relative_error(trainer.alpha_gradient, first) < GRADIENTS
        expected = recorded["alpha_grad_accumulated"][epoch]
        assert relative_error(trainer.alpha_gradient, expected) < GRADIENTS, epoch
        assert relative_error(learned(trainer)["alpha"], recorded["alphas"][epoch]) < TRAINING
        if epoch in kept:
            for key, array in (("weight", "weights"), ("bias", "biases")):
                expected = recorded[array][kept[epoch]]
                assert relative_error(learned(trainer)[key], expected) < TRAINING, (key, epoch)
        expected = float(recorded["val_accuracy"][epoch])
        assert trainer.accuracy("val") == pytest.approx(expected, abs=1e-3)
        trainer.keep_best()
    trainer.load_model(trainer.output_dir)
    assert trainer.run_notes.loaded_epoch - 1 == int(recorded["best_epoch"])
    found = logits(trainer, task.images("test"))
    assert relative_error(found, recorded["test_logits_best"]) < TRAINING
    assert trainer.accuracy("test") == pytest.approx(float(recorded["test_accuracy"]), abs=1e-3)
