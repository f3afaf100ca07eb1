"""MMRL and MMRL++: which features classify, how they start, and settings that cannot be."""

from __future__ import annotations

import pytest
import torch

from adaptation.predictor import Predictor
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer, config_node
from tests.conftest import CLASSNAMES, TestImages

pytestmark = pytest.mark.parametrize("method", ["MMRL", "MMRLPlusPlus"])


@pytest.fixture()
def trained(make_cfg, method, tmp_path) -> str:
    """Run folder of a training on base classes."""
    cfg = make_cfg(method, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.WARMUP_EPOCH", -1)
    trainer = build_trainer(cfg)
    trainer.num_batches, trainer.batch_idx = 100, 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    trainer.save_model(0, str(tmp_path / "base"))
    return str(tmp_path / "base")


def logits_of(model, images: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Logits, and which features they are of."""
    model.eval()
    with torch.no_grad():
        prediction, logits = model.predict(images), model(images)
    of_both = not torch.equal(prediction.logits, prediction.class_logits)
    assert torch.equal(logits, prediction.logits)
    return "both" if of_both else "class", logits


@pytest.mark.parametrize(
    ("classes", "data_set", "features"),
    [
        ("base", "TestImages", "both"),
        ("new", "TestImages", "class"),
        ("all", "TestImages", "class"),
        ("base", "OtherImages", "class"),
    ],
)
def test_features_follow_from_the_training(
    make_cfg, method, trained, monkeypatch, classes, data_set, features
):
    other = type("OtherImages", (TestImages,), {})
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "OtherImages", other)
    pairs = ("DATASET.SUBSAMPLE_CLASSES", classes, "DATASET.NAME", data_set)
    trainer = build_trainer(make_cfg(method, *pairs))
    trainer.load_model(trained, epoch=1)
    images = torch.randn(3, 3, 32, 32)
    assert logits_of(trainer.model, images)[0] == features
    for choice in ("both", "class"):
        trainer.model.learner.features = choice
        assert logits_of(trainer.model, images)[0] == choice
    # the classes of the training, then some of them, then both again
    trainer.model.learner.features = "auto"
    names = trainer.model.classnames
    trainer.model.set_classes(names[:1])
    assert logits_of(trainer.model, images)[0] == "class"
    trainer.model.set_classes(names)
    assert logits_of(trainer.model, images)[0] == features


def test_a_prediction_uses_both_for_the_classes_of_the_run(trained):
    images = torch.randn(3, 3, 32, 32)
    own, other = Predictor.load(trained), Predictor.load(trained, ["a tram", "a ship"])
    assert own.classnames == list(CLASSNAMES[:3])
    assert logits_of(own.model, images)[0] == "both"
    assert logits_of(other.model, images)[0] == "class"


def test_training_uses_both_also_where_tests_do_not(make_cfg, method):
    trainer = build_trainer(make_cfg(method, f"TRAINER.{config_node(method)}.FEATURES", "class"))
    images = torch.randn(3, 3, 32, 32)
    trainer.set_model_mode("train")
    prediction = trainer.model.predict(images)
    mixed = 0.7 * prediction.class_logits + 0.3 * prediction.row_logits
    torch.testing.assert_close(prediction.logits, mixed)
    assert logits_of(trainer.model, images)[0] == "class"


def test_start(make_cfg, method):
    """Maps of one encoder start alike; MMRL++'s second projection starts as CLIP's."""
    model = build_trainer(make_cfg(method)).model
    learner = model.learner
    for maps in (learner.to_text, learner.to_image):
        first, *others = maps(learner.tokens)
        assert len(others) == 6 and all(torch.equal(first, other) for other in others)
    rows = torch.randn(2, 128)
    alike = torch.allclose(learner.project_rows(model, rows), model.project_image(rows))
    assert alike == (method == "MMRLPlusPlus")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("REP_LAYERS", [], r"REP_LAYERS is \[\]"),
        ("REP_LAYERS", [7, 6], r"REP_LAYERS is \[7, 6\]"),
        ("REP_LAYERS", [6, 6], r"REP_LAYERS is \[6, 6\]"),
        ("REP_LAYERS", [6, 13], r"REP_LAYERS is 13: this backbone takes 1 to 12"),
        ("REP_LAYERS", [0, 1], r"REP_LAYERS is 0: this backbone takes 1 to 12"),
        ("REP_DIM", 0, "REP_DIM is 0: use 1 or more"),
        ("N_REP_TOKENS", 0, "N_REP_TOKENS is 0: use 1 or more"),
        ("ALPHA", 1.5, r"ALPHA is 1\.5: use 0 to 1"),
        ("FEATURES", "rows", "FEATURES: 'rows' is not in .*auto, both, class"),
    ],
)
def test_settings_that_cannot_be(make_cfg, method, key, value, match):
    with pytest.raises(ValueError, match=match):
        build_trainer(make_cfg(method, f"TRAINER.{config_node(method)}.{key}", value))


def test_a_resnet_is_refused(make_cfg, method, rn_file):
    with pytest.raises(ValueError, match=f"{method} puts prompts into the image tower"):
        build_trainer(make_cfg(method, "MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64)))


def test_checkpoint_of_other_layers(make_cfg, method, trained):
    key = f"TRAINER.{config_node(method)}.REP_LAYERS"
    trainer = build_trainer(make_cfg(method, key, [5, 6, 7, 8, 9, 10, 11]))
    with pytest.raises(ValueError, match="REP_LAYERS"):
        trainer.load_model(trained, epoch=1)
