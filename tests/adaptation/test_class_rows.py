"""Learners with a row for each class: selections of their classes, their texts, their files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dassl.engine import build_trainer
from tests.adaptation.test_going_on import assert_same_end, build, interrupted  # noqa: F401
from tests.conftest import CLASSNAMES
from tests.datasets.miniatures import BY_STEM, WNIDS
from tests.parity_files import relative_error
from trainers import Predictor

METHODS = ("TaskRes", "ZSLP", "CLAP")


def base_of(trainer) -> torch.Tensor:
    return trainer.model.learner.base_text_features


def trained(cfg, folder):
    """A trainer whose rows all differ from their start, and whose checkpoint is in a folder."""
    trainer = build_trainer(cfg)
    with torch.no_grad():
        for parameter in trainer.model.learner.parameters():
            parameter += torch.randn(parameter.shape)
    trainer.save_model(0, str(folder))
    return trainer.set_model_mode("eval") or trainer


@pytest.mark.parametrize("method", METHODS)
def test_any_selection_of_the_classes(make_cfg, tmp_path, method):
    """In any order, by prediction and by a run on a data set with some of them."""
    trainer, images = trained(make_cfg(method), tmp_path), torch.randn(3, 3, 32, 32)
    expected = trainer.model_inference(images).detach()
    order = [3, 0, 4]
    predictor = Predictor.load(tmp_path, [CLASSNAMES[index] for index in order])
    with torch.no_grad():
        assert torch.allclose(predictor.model(images), expected[:, order], atol=1e-5)
        new = build_trainer(make_cfg(method, "DATASET.SUBSAMPLE_CLASSES", "new"))
        new.load_model(str(tmp_path), epoch=1)
        assert torch.allclose(new.model_inference(images), expected[:, 3:], atol=1e-5)
    for names in (["cat", "dragon"], ["cat", "cat"]):
        with pytest.raises(ValueError, match=r"the 5 classes .*\(cat, .*or some of them"):
            Predictor.load(tmp_path, names)


@pytest.mark.parametrize("stem", ["imagenet_a", "imagenet_r", "imagenet_sketch"])
@pytest.mark.parametrize("method", METHODS)
def test_published_files_for_variants_of_imagenet(make_cfg, tmp_path, method, stem):
    """They name no classes: rows follow the WordNet ids, also of classes of one name."""
    variant = BY_STEM[stem]
    folder = variant.make(tmp_path / "data")
    lines = [f"{wnid} {'shark' if 'shark' in name else name}" for wnid, name in WNIDS.items()]
    (folder / "classnames.txt").write_text("\n".join(reversed(lines)))
    root = ("DATASET.NAME", variant.name, "DATASET.ROOT", str(tmp_path / "data"))
    trainer = build_trainer(make_cfg(method, *root))
    learner, width = trainer.model.learner, base_of(trainer).shape[1]

    def save(n_rows: int) -> dict[str, torch.Tensor]:
        path = tmp_path / f"{n_rows}" / trainer.model_name / "model.pth.tar-3"
        path.parent.mkdir(parents=True)
        state = {name: torch.randn(n_rows, width) for name in learner.class_rows}
        torch.save({"state_dict": state, "epoch": 3}, path)
        return state

    rows = {"imagenet_a": [1, 2, 3], "imagenet_r": [2, 3, 4]}.get(stem, [0, 1, 2, 3, 4])
    assert len(rows) == len(trainer.dm.dataset.classnames)
    state = save(len(WNIDS))
    trainer.load_model(str(tmp_path / "5"), epoch=3)
    for name, value in state.items():
        assert torch.equal(learner.state_dict()[name], value[rows]), name
    save(7)
    with pytest.raises(ValueError, match=r"3 has a row for each of the 7 classes .* of 5 that its"):
        trainer.load_model(str(tmp_path / "7"), epoch=3)
    for name, value in state.items():
        assert torch.equal(learner.state_dict()[name], value[rows]), "nothing was loaded"


def test_published_files_of_more_classes_than_a_run_has(make_cfg, tmp_path):
    trainer = build_trainer(make_cfg("TaskRes", "DATASET.SUBSAMPLE_CLASSES", "base"))
    path = tmp_path / "prompt_learner" / "model.pth.tar-3"
    path.parent.mkdir()
    rows = dict.fromkeys(trainer.model.learner.class_rows, torch.zeros(5, 32))
    torch.save({"state_dict": rows, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"each of the 5 classes .* and this run has 3: test it"):
        trainer.load_model(str(tmp_path), epoch=3)


def test_of_classes_of_one_name_each_has_its_row(make_cfg, tmp_path):
    trained(make_cfg("TaskRes"), tmp_path)
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["meta"]["classnames"][3] = "cat"
    torch.save(checkpoint, path)
    rows = checkpoint["state_dict"]["text_feature_residuals"]
    found = Predictor.load(tmp_path, ["tree", "cat", "cat"]).model.learner
    assert torch.equal(found.text_feature_residuals, rows[[4, 0, 3]])


@pytest.mark.parametrize("method", METHODS)
def test_base_is_that_of_the_training(make_cfg, tmp_path, method):
    """Of other texts, here, which a data set for a test may have."""
    trainer = trained(make_cfg(method), tmp_path)
    cfg = make_cfg(method, "DATASET.TEMPLATES", ["a {} of ice."])
    other = build_trainer(cfg)
    assert relative_error(base_of(other), base_of(trainer)) > 0.01
    other.load_model(str(tmp_path), epoch=1)
    assert torch.equal(base_of(other), base_of(trainer))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_base_is_the_raw_average_over_texts(make_cfg, method, precision):
    """Underscores stay in the names, unless they are to be spaces."""
    node = f"TRAINER.{method.upper()}"
    texts, pairs = ["a {}.", "the {} there"], (f"{node}.PREC", precision)
    for keep in (True, False):
        cfg = make_cfg(method, *pairs, f"{node}.KEEP_UNDERSCORES", keep, "DATASET.TEMPLATES", texts)
        model = build_trainer(cfg).model
        names = [name if keep else name.replace("_", " ") for name in CLASSNAMES]
        means = []
        for text in texts:
            model.learner.template, model.learner.keep_underscores = text, True
            model.set_classes(names)
            means.append(model.encode_text())
        expected = torch.stack(means).mean(dim=0)
        assert relative_error(model.learner.base_text_features, expected) < 1e-6
        assert (expected.norm(dim=-1) - 1).abs().min() > 0.05, "not of unit norm"


def test_an_enhanced_base_has_a_projection_of_its_own(make_cfg, tmp_path):
    plain = build_trainer(make_cfg("TaskRes"))
    own = plain.model.clip.text_projection.detach()
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": {"weight": 2 * own.t()}}, path)
    cfg = make_cfg("TaskRes", "TRAINER.TASKRES.ENHANCED_BASE", str(path))
    enhanced = build_trainer(cfg)
    assert relative_error(base_of(enhanced), 2 * base_of(plain)) < 1e-6
    assert torch.equal(enhanced.model.clip.text_projection, own), "CLIP stays as it is"
    enhanced.save_model(0, str(tmp_path / "run"))
    path.unlink()  # a prediction does not need it
    assert torch.equal(base_of(Predictor.load(tmp_path / "run")), base_of(enhanced))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No checkpoint at .* leave it empty .* not published"),
        ({"state_dict": {"bias": torch.zeros(3)}}, "no text projection"),
        ({"state_dict": {"weight": torch.zeros(3)}}, "no text projection"),
        ({"weight": torch.zeros(32, 64)}, "no text projection"),
        ([1], "not a checkpoint"),
        ({"state_dict": {"weight": torch.zeros(64, 32)}}, r"\(32, 64\) does not fit.*\(64, 32\)"),
    ],
)
def test_files_that_hold_no_enhanced_base(make_cfg, tmp_path, content, message):
    path = tmp_path / "base.pth.tar"
    if content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=f"ENHANCED_BASE.*{message}") as info:
        build_trainer(make_cfg("TaskRes", "TRAINER.TASKRES.ENHANCED_BASE", str(path)))
    assert "\n" not in str(info.value)


def test_multipliers_that_grow_go_on(build):  # noqa: F811
    pairs = ("TRAINER.CLAP.CONSTRAINT", "l2-adaptative", "OPTIM.LR", 0.5, "OPTIM.MAX_EPOCH", 4)
    straight = build("CLAP", "straight", *pairs)
    straight.train()
    start = build("CLAP", "start", *pairs)
    start.before_epoch()
    assert not torch.equal(straight.multipliers, start.multipliers)
    resumed = interrupted(lambda: build("CLAP", "resumed", *pairs), [3, 2])
    assert resumed.start_epoch > 0
    assert torch.equal(straight.multipliers, resumed.multipliers)
    assert_same_end(straight, resumed)


@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("CLIPAdapter", "RATIO", 0.0, "RATIO is 0.0: use more than 0"),
        ("CLIPAdapter", "REDUCTION", 33, "REDUCTION is 33: .* 32 values, takes 1 to 32"),
        ("ZSLP", "PASSES", 0, "ZSLP.PASSES is 0: use 1 or more"),
        ("CLAP", "CONSTRAINT", "none", "CONSTRAINT is 'none': .*ZSLP is the method without"),
        ("CLAP", "CONSTRAINT", "l3", "CONSTRAINT is 'l3': use one of l2, cosine.*mean l2"),
        ("CLAP", "CONSTRAINT", "l2-cosine", "CONSTRAINT is 'l2-cosine'"),
        ("CLAP", "CONSTRAINT", "balanced", "CONSTRAINT is 'balanced'"),
    ],
)
def test_settings_that_cannot_be(make_cfg, method, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg(method, f"TRAINER.{method.upper()}.{key}", value))


def test_training_starts_at_the_zero_shot_classifier(make_cfg):
    for method in METHODS:
        trainer = build_trainer(make_cfg(method))
        features = trainer.model.text_features()
        assert torch.equal(features, F.normalize(base_of(trainer), dim=-1))
