"""Data sets for tests only: training on them is refused, testing is not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml

import train
from adaptation.seeds import SeveralSeeds
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.engine import build_trainer
from protocols import VARIANTS_OF
from tests.datasets.miniatures import BY_STEM, CONFIGS

ROOT = Path(__file__).resolve().parents[2]


def name_of(stem: str) -> str:
    return yaml.safe_load((CONFIGS / f"{stem}.yaml").read_text())["DATASET"]["NAME"]


@pytest.mark.parametrize(
    ("source", "variant"), [(s, v) for s, variants in VARIANTS_OF.items() for v in variants]
)
def test_variants_name_the_data_set_to_train_on(source, variant):
    assert DATASET_REGISTRY.get(name_of(variant)).tests_of == name_of(source)
    assert not getattr(DATASET_REGISTRY.get(name_of(source)), "tests_of", "")


@pytest.mark.parametrize("words", [("--seed", "1"), ("--seeds", "1,2")])
@pytest.mark.parametrize("method", ["CoOp", "TipAdapter"])
@pytest.mark.parametrize("pairs", [(), ("DATASET.SUBSAMPLE_CLASSES", "base")])
def test_the_command_line_refuses_before_it_writes(tmp_path, capsys, method, words, pairs):
    command = [
        *("--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out/seed{seed}")),
        *("--trainer", method, "--dataset-config-file", str(CONFIGS / "symbols_r.yaml")),
        *("--config-file", str(ROOT / f"configs/trainers/{method}/tiny.yaml")),
    ]
    assert train.main([*command, *words, *pairs]) == 2
    assert capsys.readouterr().err == (
        "error: SymbolsR is for tests only (its images are the test images): train on Symbols\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def make_trainer(make_cfg, tmp_path):
    """make_trainer(method, seed): a trainer on a miniature of ImageNet-R, with an own folder."""
    variant = BY_STEM["imagenet_r"]
    variant.make(tmp_path / "data")
    root = ("DATASET.NAME", variant.name, "DATASET.ROOT", str(tmp_path / "data"))

    def make(method: str, seed: int = 1):
        folder = str(tmp_path / f"out{seed}")
        return build_trainer(make_cfg(method, *root, "OUTPUT_DIR", folder, "SEED", seed))

    return make


@pytest.mark.parametrize("method", ["CoOp", "TipAdapter", "ZeroshotCLIP"])
def test_the_engine_refuses_and_tests(make_trainer, tmp_path, method):
    """Whoever starts the training; zero-shot CLIP only tests."""
    trainer = make_trainer(method)
    if method == "ZeroshotCLIP":
        trainer.train()
        assert trainer.run_notes.results
        return
    with pytest.raises(ValueError, match=r"^ImageNetR is for tests only .*train on ImageNet$"):
        trainer.train()
    assert not (tmp_path / "out1").exists()
    trainer.test()


def test_the_engine_refuses_several_seeds(make_trainer, tmp_path):
    seeds = SeveralSeeds({seed: partial(make_trainer, "CoOp", seed) for seed in (1, 2)})
    with pytest.raises(ValueError, match="ImageNetR is for tests only"):
        seeds.train()
    assert not list(tmp_path.glob("out*"))
    assert len(seeds.test()) == 2


def test_data_sets_of_others_are_trained_on(make_cfg, monkeypatch):
    """They may lack the attribute: their base class need not be the one here."""
    monkeypatch.delattr(DatasetBase, "tests_of")
    trainer = build_trainer(make_cfg("CoOp", "OPTIM.MAX_EPOCH", 1))
    trainer.train()
    assert trainer.run_notes.results
