"""Pools of features: what they hold, and runs that train and test on them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adaptation.features import FeatureLearner, FeatureTrainer, PoolLoader
from adaptation.learner import Prediction
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from tests.adaptation.test_going_on import EVERY_STEP, assert_same_end, interrupted, kill
from tests.parity_files import relative_error

PRECISIONS = {"fp32": 1e-6, "bf16": 2e-2, "fp16": 5e-3, "amp": 5e-3}


class ProbeLearner(FeatureLearner):
    """A linear map of the features, and the mean feature that it started from."""

    class_specific = True

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_classes, width))
        self.register_buffer("mean", torch.zeros(width))

    def classify(self, clip, raw):
        features = F.normalize(raw, dim=-1)
        return Prediction(features, clip.text_features(), (raw - self.mean) @ self.weight.t())


class Probe(FeatureTrainer):
    node = "PROBE"
    n_passes = 2

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.PROBE = CfgNode()
        cfg.TRAINER.PROBE.PREC = "fp32"

    @classmethod
    def build_learner(cls, cfg, clip, classnames):
        return ProbeLearner(clip.text_projection.shape[1], len(classnames))

    def passes(self):
        return self.n_passes

    def start_from(self, pool):
        self.model.learner.mean.copy_(pool.features.mean(dim=(0, 1)))


@pytest.fixture()
def build(make_cfg, monkeypatch, tmp_path):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Probe", Probe)

    def build(folder: str, *pairs: object, seed: int = 1):
        set_random_seed(seed)
        small = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True)
        out = ("OUTPUT_DIR", str(tmp_path / folder))
        return build_trainer(make_cfg("Probe", *small, *out, *pairs))

    return build


def with_pool(trainer):
    trainer.epoch = 0
    trainer.before_epoch()
    return trainer


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("classes", ["all", "new"])
def test_pool_has_every_image_in_the_order_of_the_list(build, precision, classes):
    """Without augmentation a row is the feature of its image; the loader's batches drop some."""
    pairs = ("INPUT.TRANSFORMS", ("normalize",), "DATASET.SUBSAMPLE_CLASSES", classes)
    size = ("DATALOADER.TEST.BATCH_SIZE", 3, "DATALOADER.NUM_WORKERS", 2)
    trainer = with_pool(build("run", *pairs, *size, "TRAINER.PROBE.PREC", precision))
    items = trainer.dm.dataset.train_x
    assert len(items) == {"all": 10, "new": 4}[classes]
    assert trainer.pool.features.shape[:2] == (2, len(items))
    assert trainer.pool.features.dtype == torch.float32
    assert trainer.pool.labels.tolist() == [item.label for item in items]
    dataset, model = trainer.image_loader.dataset, trainer.model
    with torch.no_grad():
        for row, index in zip(trainer.pool.features[1], range(len(items)), strict=True):
            alone = model.encode_image(dataset[index]["img"][None])[0]
            assert relative_error(row, alone) < max(PRECISIONS[precision], 1e-5), index


def test_passes_have_views_of_their_own_that_a_seed_repeats(build):
    first, again = (with_pool(build("run")).pool.features for _ in range(2))
    other = with_pool(build("run", seed=2)).pool.features
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


def test_seeded_views_are_those_of_the_epochs(build):
    trainer = with_pool(build("run", "INPUT.SEEDED_VIEWS", True))
    dataset = trainer.image_loader.dataset
    for number, features in enumerate(trainer.pool.features):
        dataset.set_epoch(number)
        images = torch.stack([dataset[index]["img"] for index in range(len(dataset))])
        assert relative_error(features, trainer.model.encode_image(images)) < 1e-5
    trainer.train_loader_x = trainer.image_loader
    assert torch.equal(
        with_pool(build("run", "INPUT.SEEDED_VIEWS", True, seed=9)).pool[0], trainer.pool[0]
    ), "from SEED alone, which is the same"


def test_encoding_leaves_the_random_state_of_the_run(build):
    trainer = build("run")
    trainer.views_seed = 5
    before = torch.get_rng_state()
    trainer.encode_pass(0), trainer.split_features("test")
    assert torch.equal(before, torch.get_rng_state())


def test_a_memory_bound_encodes_in_parts(build):
    whole = with_pool(build("run")).pool.features
    trainer, sizes = build("run", "MODEL.MEMORY_GB", 0.001), []
    encode = trainer.model.encode_image
    trainer.model.encode_image = lambda image: sizes.append(len(image)) or encode(image)
    assert relative_error(with_pool(trainer).pool.features, whole) < 1e-5
    assert max(sizes) < 10


def test_results_are_those_of_the_images(build):
    """A run that chooses its epoch on validation images encodes each view once, and tests so."""
    trainer = build("run", "TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False)
    encoded, encode = [], trainer.model.encode_image
    trainer.model.encode_image = lambda image: encoded.append(len(image)) or encode(image)
    trainer.train()
    assert sum(encoded) == 2 * 10 + 2 * 5 + 30, "two passes, validation, test"
    found, labels = trainer.evaluator.logits_and_labels()
    again = build("again")
    again.load_model(trainer.output_dir)
    plain = [(again.model_inference(b["img"]), b["label"]) for b in again.test_loader]
    logits, label = map(torch.cat, zip(*plain, strict=True))
    assert torch.equal(found, logits) and labels.tolist() == label.tolist()
    assert again.model.learner.weight.abs().max() > 0


def test_pool_batches():
    features, labels = torch.arange(7.0)[:, None], torch.arange(7)
    batches = list(PoolLoader(features, labels, 3))
    assert [len(batch["img"]) for batch in batches] == [3, 3, 1] and len(
        PoolLoader(*batches[0].values(), 3)
    ) == 1
    assert sorted(torch.cat([batch["label"] for batch in batches]).tolist()) == list(range(7))
    assert all(torch.equal(b["img"][:, 0], b["label"].float()) for b in batches)
    (whole,) = PoolLoader(features, labels, 0)
    assert torch.equal(whole["img"], features)
    fixed = PoolLoader(features, labels, 3, steps=1, order=lambda n: torch.arange(n).flip(0))
    assert [batch["label"].tolist() for batch in fixed] == [[6, 5, 4]] and len(fixed) == 1


SETTINGS = {
    "alone": (),
    "workers": ("DATALOADER.NUM_WORKERS", 2),
    "validation": ("TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False),
    "seeded views": ("INPUT.SEEDED_VIEWS", True),
    "without a seed": ("SEED", -1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_interrupted_runs_end_as_straight_ones(build, name):
    straight = build("straight", *SETTINGS[name])
    straight.train()
    resumed = interrupted(partial(build, "resumed", *SETTINGS[name]), [2, 5])
    assert resumed.start_epoch == 1
    assert_same_end(straight, resumed)
    one, other = straight.model.learner.state_dict(), resumed.model.learner.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_killed_run_goes_on_with_its_views(build):
    """Without a seed the views are those that the first start drew."""
    pairs = ("SEED", -1, *EVERY_STEP)
    straight = build("straight", *pairs, seed=3)
    straight.train()
    kill(build("killed", *pairs, seed=3), 4)
    resumed = build("killed", *pairs, seed=4)
    resumed.train()
    assert_same_end(straight, resumed)


def test_seeds_together_are_refused_in_one_line(build):
    from adaptation.seeds import check_trains_together

    trainer = build("run")
    with pytest.raises(ValueError, match=r"own .*predict.*one by one with --seed$"):
        check_trains_together(type(trainer), trainer.cfg)


def test_a_frozen_config_is_written_once(build, monkeypatch):
    """As YAML it takes longer than an epoch; a config that can change is written as it is."""
    trainer, dumped = build("run"), []
    dump = type(trainer.cfg).dump
    monkeypatch.setattr(CfgNode, "dump", lambda cfg: dumped.append(1) or dump(cfg))

    def stored() -> str:
        return trainer.checkpoint_state("prompt_learner", 0)["meta"]["config"]

    first = stored()
    trainer.cfg.SEED = 7
    changed = stored()
    assert (len(dumped), "SEED: 1" in first, "SEED: 7" in changed) == (2, True, True)
    trainer.cfg.freeze()
    assert [stored(), stored()] == [changed] * 2 and len(dumped) == 3
