"""Seeds trained together against the same seeds trained alone, for every registered method."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import ImageError, set_random_seed
from tests.parity_files import relative_error
from tests.trainers.test_contract import METHODS, PRECISIONS, node
from trainers.coop import CoOp, ContextLearner
from trainers.several_seeds import SeveralSeeds, check_trains_together

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2)


@pytest.fixture()
def build(make_cfg, tmp_path):
    """Function that builds the trainer of one seed, which keeps its batches and results."""

    def build(method: str, folder: str, seed: int, *pairs: object):
        cfg = make_cfg(
            method,
            *("SEED", seed, "OUTPUT_DIR", str(tmp_path / folder / f"seed{seed}")),
            *("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", -1),
            *("DATASET.TEMPLATES", ("a photo of a {}.", "art of the {}."), *pairs),
        )
        set_random_seed(seed)
        trainer = build_trainer(cfg)
        trainer.seen, trainer.results = [], []
        parse, test = trainer.parse_batch_train, trainer.test

        def parse_and_keep(batch):
            trainer.seen.append((batch["impath"], batch["img"]))
            return parse(batch)

        def test_and_keep(split=None):
            trainer.results.append(test(split))
            return trainer.results[-1]

        trainer.parse_batch_train, trainer.test = parse_and_keep, test_and_keep
        return trainer

    return build


def builds(build, method: str, *pairs: object):
    return {seed: partial(build, method, "together", seed, *pairs) for seed in SEEDS}


def train_together(build, method: str, *pairs: object) -> list:
    together = SeveralSeeds(builds(build, method, *pairs))
    together.train()
    return [run.trainer for run in together.runs]


def checkpoint_of(trainer, epoch: int) -> dict:
    path = Path(trainer.cfg.OUTPUT_DIR) / trainer.model_name / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)


def assert_same_run(trainer, alone, limit: float = 1e-4) -> None:
    """Equal batches, random state and schedule, and learners that differ by rounding only."""
    assert len(trainer.seen) == len(alone.seen) > 0
    for (paths, images), (paths_alone, images_alone) in zip(trainer.seen, alone.seen, strict=True):
        assert paths == paths_alone
        assert torch.equal(images, images_alone)
    got, want = checkpoint_of(trainer, 2), checkpoint_of(alone, 2)
    assert got.keys() == want.keys()
    assert got["scheduler"] == want["scheduler"]
    random, random_alone = (c["trainer_state"]["random"] for c in (got, want))
    assert random["python"] == random_alone["python"]
    assert torch.equal(random["torch"], random_alone["torch"])
    assert torch.equal(random["numpy"][0], random_alone["numpy"][0])
    assert random["numpy"][1:] == random_alone["numpy"][1:]
    assert got["state_dict"].keys() == want["state_dict"].keys()
    for key, value in want["state_dict"].items():
        assert relative_error(got["state_dict"][key], value) < limit, key


def assert_as_alone(build, method: str, *pairs: object) -> None:
    together = train_together(build, method, *pairs)
    for trainer, seed in zip(together, SEEDS, strict=True):
        alone = build(method, "alone", seed, *pairs)
        alone.train()
        assert_same_run(trainer, alone)
        assert trainer.results == alone.results != []
    # the seeds are different runs
    assert together[0].seen[0][0] != together[1].seen[0][0]
    weights = [t.model.learner.state_dict() for t in together]
    assert any(not torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("method", METHODS)
def test_seeds_together_are_as_alone(build, method):
    assert_as_alone(build, method)


@pytest.fixture()
def names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("crow\ndog\nflower\nnewt\noak\nboat\n")
    return str(path)


SETTINGS = {
    "contexts per class": ("CoOp", "TRAINER.COOP.CSC", True),
    "class name in the middle": ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    "no image prompts": ("IVLP", "TRAINER.IVLP.PROMPT_DEPTH_VISION", 0),
    "no teacher": ("MMLoP", "TRAINER.MMLOP.CONSISTENCY", False),
    "clipped gradients": ("MMLoP", "OPTIM.CLIP_GRAD_NORM", 0.1),
    "own head": ("LoRVP", "TRAINER.LORVP.HEAD", "lp"),
    "work between epochs": ("LoRVP", "TRAINER.LORVP.HEAD", "ilm"),
    "validation": ("PromptSRC", "TEST.FINAL_MODEL", "best_val"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(build, names_file, name):
    method, *pairs = SETTINGS[name]
    if "ilm" in pairs:
        pairs += ["TRAINER.LORVP.SOURCE_NAMES", names_file]
    assert_as_alone(build, method, *pairs)


def test_resnet(build, rn_file):
    assert_as_alone(build, "CoOp", "MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64))


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_half_precision(build, precision):
    """Rounding is coarse and depends on what is computed at once: one step, and more room."""
    pairs = ["TRAINER.MMLOP.PREC", precision, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1]

    def scaled(folder: str, seed: int):
        trainer = build("MMLoP", folder, seed, *pairs, "DATALOADER.TRAIN_X.BATCH_SIZE", 10)
        if trainer.scaler is not None:  # a scale that no step has to be skipped for
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        return trainer

    together = SeveralSeeds({seed: partial(scaled, "together", seed) for seed in SEEDS})
    together.train()
    for run in together.runs:
        alone = scaled("alone", run.seed)
        start = {key: value.clone() for key, value in alone.model.learner.state_dict().items()}
        alone.train()
        for key, value in alone.model.learner.state_dict().items():
            moved, moved_alone = (
                run.trainer.model.learner.state_dict()[key] - start[key],
                value - start[key],
            )
            assert moved_alone.any()
            assert relative_error(moved, moved_alone) < 0.05, key
