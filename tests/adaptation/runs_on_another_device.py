"""Runs on a device beside the CPU: everything is where it has to be, and the numbers are the same.

Without a GPU the device is pretended (``tests/pretend_device.py``), which shows what belongs on it
and is left on the CPU, and nothing of a GPU's own kernels.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from adaptation.seeds import SeveralSeeds
from dassl.engine import SimpleTrainer, build_trainer
from dassl.utils import set_random_seed
from tests.parity_files import relative_error
from tests.pretend_device import another_device
from tests.trainers.test_contract import METHODS
from trainers import Predictor

VARIANTS = {method: (method,) for method in METHODS} | {
    "half precision": ("MMLoP", "TRAINER.MMLOP.PREC", "fp16"),
    "plain encoders": ("MMLoP", "MODEL.FAST_ENCODERS", False),
    "text in parts": ("CoOp", "MODEL.MEMORY_GB", 0.0017, "DATASET.SUBSAMPLE_CLASSES", "all"),
    "named views": ("PromptSRC", "INPUT.SEEDED_VIEWS", True),
    "images augmented there": ("CoOp", "DATALOADER.CACHE", "fast"),
    "contexts of every class": ("CoOp", "TRAINER.COOP.CSC", True),
    "name in the middle": ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    "mapping": ("LoRVP", "TRAINER.LORVP.HEAD", "flm"),
    "mapping of every epoch": ("LoRVP", "TRAINER.LORVP.HEAD", "ilm"),
}


#: relative error of a learner; a GPU's kernels round in their own way
LIMIT = 1e-2 if torch.cuda.is_available() else 1e-4
#: and some of the eighteen test images may be near ties
ACCURACY = 20 if torch.cuda.is_available() else 0.01


@pytest.fixture()
def there(monkeypatch):
    """Context in which trainers are built on the other device."""

    @contextmanager
    def context():
        build = SimpleTrainer.build_data_loader
        with another_device() as device, monkeypatch.context() as patch:

            def build_there(trainer):
                trainer.device = device
                build(trainer)

            patch.setattr(SimpleTrainer, "build_data_loader", build_there)
            yield device

    return context


@pytest.fixture()
def build(make_cfg, tmp_path):
    def build(method: str, folder: str, *pairs: object, seed: int = 1):
        set_random_seed(seed)
        cfg = make_cfg(
            method,
            *("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "OPTIM.CLIP_GRAD_NORM", 1.0),
            *("SEED", seed, "OUTPUT_DIR", str(tmp_path / folder / f"seed{seed}")),
            *("TRAIN.CHECKPOINT_FREQ", 1, "DATASET.SUBSAMPLE_CLASSES", "base"),
            *("DATASET.TEMPLATES", ("a photo of a {}.", "art of the {}."), *pairs),
        )
        return build_trainer(cfg)

    return build


def assert_same(trainer, other, limit: float = LIMIT) -> None:
    for key, value in trainer.model.learner.state_dict().items():
        found = other.model.learner.state_dict()[key]
        assert found.device == other.device != value.device, key
        assert relative_error(found.cpu(), value) < limit, key


@pytest.mark.parametrize("name", VARIANTS)
def test_runs(build, there, name):
    """Train, go on, test, test on new classes (where they fit), predict from the checkpoint."""
    method, *pairs = VARIANTS[name]
    here = build(method, "here", *pairs)
    here.train()
    with there() as device:
        if "fast" in pairs:
            pairs += ["DATALOADER.TRANSFORM_DEVICE", device.type]
        begun = build(method, "there", *pairs)
        begun.max_epoch = 1
        begun.train()
        resumed = build(method, "there", *pairs)
        resumed.train()
        assert resumed.start_epoch == 1
        # both round in another way there: half precision, and interpolation between pixels
        assert_same(here, resumed, 1e-2 if {"fp16", "fast"} & set(pairs) else LIMIT)
        result = resumed.test()
        if not pairs:
            classes = "base" if resumed.model.learner.class_specific else "new"
            tested = build(method, "tested", "DATASET.SUBSAMPLE_CLASSES", classes)
            tested.load_model(resumed.output_dir, epoch=2)
            assert 0.0 <= tested.test() <= 100.0
    assert here.test() == pytest.approx(result, abs=ACCURACY)
    predictor = Predictor.load(resumed.output_dir, device="cpu")
    image = Path(here.dm.dataset.test[0].impath)
    (labels,) = predictor.predict([image])
    with there():
        elsewhere = Predictor.load(resumed.output_dir, device=str(resumed.device))
        (same,) = elsewhere.predict([image])
    assert [label.name for label in labels] == [label.name for label in same]


@pytest.mark.parametrize("method", ["CoCoOp", "MMLoP"])
def test_several_seeds(build, there, method):
    alone = []
    for seed in (1, 2):
        alone.append(build(method, "alone", seed=seed))
        alone[-1].train()
    with there():
        builds = {seed: partial(build, method, "together", seed=seed) for seed in (1, 2)}
        together = SeveralSeeds(builds)
        together.train()
        for trainer, run in zip(alone, together.runs, strict=True):
            assert_same(trainer, run.trainer, LIMIT)


def test_resnet(build, there, rn_file):
    with there():
        size = ("INPUT.SIZE", (64, 64))
        trainer = build("CoOp", "resnet", "MODEL.BACKBONE.NAME", rn_file, *size)
        trainer.train()
        assert all(p.device == trainer.device for p in trainer.model.parameters())


def test_zero_shot(build, there):
    here = build("ZeroshotCLIP", "here").test()
    with there():
        # on a GPU in half precision
        assert build("ZeroshotCLIP", "there").test() == pytest.approx(here, abs=ACCURACY)


def test_the_other_device_refuses_tensors_of_the_cpu():
    with another_device() as device:
        x, y = torch.ones(3, device=device), torch.ones(3)
        assert x.device == device and y.device.type == "cpu"
        with pytest.raises(RuntimeError, match="device"):
            x + y
        with pytest.raises(RuntimeError, match="device"):
            torch.cat([x, y])
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        assert (x + y.to(device)).cpu().tolist() == [2.0] * 3
        assert (x + torch.tensor(1.0)).tolist() == [2.0] * 3, "a number may come from the CPU"
