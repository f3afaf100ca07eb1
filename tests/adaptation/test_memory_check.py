"""Memory needed against memory free before a run: refused, noted or let through."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import trainers  # noqa: F401  # registers the methods
from adaptation.features import FeatureLearner
from adaptation.memory_check import MARGIN, Load, check_file
from adaptation.seeds import SeveralSeeds
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import SettingError
from tests.adaptation.test_memory import NAMES, allocated, images
from tests.support.test_free_memory import address_space

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is free")
MANY = [f"{name} {i}" for i in range(10) for name in NAMES]
METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), PromptTrainer)
    and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
]


@pytest.mark.parametrize(("method", "fast"), [*((m, True) for m in METHODS), ("IVLP", False)])
def test_estimate(make_cfg, method, fast):
    """An estimate is not above what a step holds by more than the margin, nor far below.

    Of a method that is trained on features, it is what their encoding and a step on them hold.
    """
    torch.manual_seed(1)
    cfg = make_cfg(method, "MODEL.FAST_ENCODERS", fast)
    clip = CLIP(64, 32, 12, 64, 8, 77, 49408, 64, 1, 12)
    model = TRAINER_REGISTRY.get(method).build_classifier(cfg, clip, NAMES[:60])
    model.learner.start(model)
    trains_on_features = isinstance(model.learner, FeatureLearner)
    with allocated() as peak:
        if trains_on_features:
            logits = model.classify(model.raw_image_features(images(4))).logits
        else:
            logits = model.predict(images(4)).logits
        if TRAINER_REGISTRY.get(method).has_steps:
            logits.square().sum().backward()
    assert 0.5 < Load(model, 4).bytes / peak.value < MARGIN
    with allocated() as peak, torch.no_grad():
        model(images(40))
    assert 0.5 < Load(model, 40, training=False).bytes / peak.value < MARGIN


@pytest.fixture()
def trainer(make_cfg):
    """Function that gives a trainer for many classes."""

    def build(*pairs: object, method: str = "CoOp") -> PromptTrainer:
        trainer = build_trainer(make_cfg(method, *pairs))
        if method == "CoOp":
            trainer.model.set_classes(MANY)
        return trainer

    return build


def run_files(trainer: PromptTrainer) -> list[Path]:
    return list(Path(trainer.output_dir).rglob("*.*"))


def step(trainer: PromptTrainer) -> None:
    trainer.num_batches, trainer.batch_idx = 2, 0
    trainer.forward_backward({"img": images(4), "label": torch.arange(4)})


@pytest.mark.own_process
def test_refused_then_changed_as_advised(trainer):
    refused = trainer()
    room = Load(refused.model, 4).bytes / 2
    with address_space(room), pytest.raises(SettingError) as error:
        refused.train()
    assert not list(Path(refused.output_dir).rglob("*.*"))
    text = str(error.value)
    assert re.search(r"needs about \S+ GB, and \S+ GB .* are free", text)
    with address_space(room), pytest.raises(RuntimeError, match="allocate memory"):
        step(refused)
    advised = trainer(*re.search(r"set (MODEL\.MEMORY_GB) (\S+);", text).groups())
    with address_space(room):
        step(advised)


@pytest.mark.parametrize(("share", "said"), [(0.5, "error"), (1.0, "note"), (2.0, "")])
def test_needed_and_free(trainer, capsys, share, said):
    run = trainer("TEST.NO_TEST", True)
    with address_space(share * Load(run.model, 4).bytes):
        if said == "error":
            with pytest.raises(SettingError, match=r"MODEL\.MEMORY_CHECK False skips this check"):
                run.check_memory(training=True)
            trainer("MODEL.MEMORY_CHECK", False).check_memory(training=True)
        else:
            run.check_memory(training=True)
    assert ("Note: a training step of 4 images" in capsys.readouterr().out) == (said == "note")


@pytest.mark.parametrize(
    ("method", "pairs", "advice"),
    [
        ("CoOp", ("MODEL.FAST_ENCODERS", False), r"leave out MODEL\.FAST_ENCODERS False"),
        ("CoOp", (), r"TRAINER\.COOP\.PREC bf16"),
        ("VPT", ("DATALOADER.TRAIN_X.BATCH_SIZE", 20), r"DATALOADER\.TRAIN_X\.BATCH_SIZE \d+;"),
    ],
)
def test_advice(trainer, method, pairs, advice):
    run = trainer(*pairs, method=method)
    size = 20 if method == "VPT" else 4
    room = Load(run.model, size).bytes / 2
    with address_space(room), pytest.raises(SettingError, match=advice):
        run.check_memory(training=True)


def test_test_batch(trainer):
    run = trainer("DATALOADER.TEST.BATCH_SIZE", 30)
    room = Load(run.model, 30, training=False).bytes / 2
    with address_space(room), pytest.raises(SettingError, match="a test batch of 30 images"):
        run.test()


@pytest.mark.parametrize("method", ["ZSLP", "TipAdapter"])
def test_on_features(trainer, method):
    """Training images are encoded in batches as large as those of a test."""
    run = trainer("DATALOADER.TEST.BATCH_SIZE", 10, method=method)
    n_images = min(10, len(run.dm.dataset.train_x))
    said = rf"encoding a batch of {n_images} images .* set MODEL\.MEMORY_GB"
    room = Load(run.model, n_images).bytes / 2
    with address_space(room), pytest.raises(SettingError, match=said):
        run.check_memory(training=True)


@pytest.mark.parametrize(("method", "key"), [("ZSLP", "PASSES"), ("TipAdapter", "AUGMENT_EPOCH")])
def test_kept_features(trainer, method, key):
    """Views of training images, and each other image, are kept beside what encoding holds."""
    node = f"TRAINER.{TRAINER_REGISTRY.get(method).node}"
    runs = [trainer(f"{node}.{key}", views, method=method) for views in (2, 10**6)]
    n_images, width = len(runs[0].dm.dataset.train_x), 32
    few, many = (run.kept_bytes(training=True) for run in runs)
    assert many - few == (10**6 - 2) * n_images * width * 4
    others = len(runs[0].dm.dataset.val) + len(runs[0].dm.dataset.test)
    assert few == (3 * n_images + others) * width * 4
    assert runs[0].kept_bytes(training=False) == len(runs[0].dm.dataset.test) * width * 4
    said = rf"beside \S+ GB of features that the run keeps, .*fewer views .*\({node}\.{key}\)"
    with address_space(many / 2), pytest.raises(SettingError, match=said):
        runs[1].check_memory(training=True)
    with address_space(many / 2):
        runs[0].check_memory(training=True)


def test_seeds_together(trainer):
    runs = SeveralSeeds({seed: partial(trainer, "SEED", seed) for seed in (1, 2)})
    room = Load(runs.runs[0].trainer.model, 4).bytes
    with (
        address_space(room),
        pytest.raises(SettingError, match=r"8 images .* 2 seeds together .* train fewer seeds"),
    ):
        runs.train()


def test_weights(make_cfg, tmp_path):
    file = tmp_path / "large.pt"
    with open(file, "wb") as content:
        content.truncate(int(1e9))
    cfg = make_cfg("CoOp", "MODEL.BACKBONE.NAME", str(file))
    with address_space(5e8), pytest.raises(SettingError, match=r"large\.pt takes 1 GB"):
        build_trainer(cfg)
    with address_space(5e8):
        check_file(file, go_on=True)
    check_file(file)
