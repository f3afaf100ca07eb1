"""Shots and base/new classes equal the recorded ones, whether drawn or read from a cache."""

from __future__ import annotations

import json
import os
import random

import pytest

import datasets
from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase
from dassl.utils import set_random_seed
from datasets.fewshot import FewShotDataset
from datasets.items import make_item
from tests.parity_files import PARITY_DIR

RECORDED = json.loads((PARITY_DIR / "fewshot_sampling.json").read_text())


def labelled(labels, part):
    """Synthetic items whose path tells their position in the list."""
    return [make_item(f"/{part}/{n}", y, f"class_{y}") for n, y in enumerate(labels)]


def positions(items):
    return [int(os.path.basename(item.impath)) for item in items]


@pytest.fixture
def recorded_list(tmp_path):
    """recorded_list(name, shots, seed, subsample): the data set made of that label list."""

    def build_list(name, shots, seed, subsample="all"):
        labels = RECORDED["lists"][name]

        class RecordedList(FewShotDataset):
            dataset_dir = f"list_{name}"
            image_dir = "."

            def read_annotations(self):
                parts = ("train", "val", "test")
                return tuple(labelled(labels[f"{part}_labels"], part) for part in parts)

        (tmp_path / f"list_{name}").mkdir(exist_ok=True)
        options = ["DATASET.NUM_SHOTS", shots, "DATASET.SUBSAMPLE_CLASSES", subsample]
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.merge_from_list(["DATASET.ROOT", str(tmp_path), "SEED", seed, *options])
        set_random_seed(seed)
        return RecordedList(cfg)

    return build_list


@pytest.mark.parametrize(
    "case", RECORDED["cases"], ids=lambda c: f"{c['list']}-seed{c['seed']}-{c['shots']}"
)
def test_recorded_shots(case, recorded_list):
    for source in ("drawn", "read from the cache"):
        dataset = recorded_list(case["list"], case["shots"], case["seed"])
        assert positions(dataset.train_x) == case["train_indices"], source
        assert [item.label for item in dataset.train_x] == case["train_labels"], source
        assert positions(dataset.val) == case["val_indices"], source
        # what random numbers follow does not depend on whether there was a cache
        assert random.random() == case["next_python_random_after"], source


@pytest.mark.parametrize(
    ("case", "subsample"),
    [(c, s) for c in RECORDED["cases"] for s in ("all", "base", "new") if s in c],
    ids=lambda v: v if isinstance(v, str) else f"{v['list']}-seed{v['seed']}-{v['shots']}",
)
def test_recorded_base_and_new(case, subsample, recorded_list):
    dataset = recorded_list(case["list"], case["shots"], case["seed"], subsample)
    expected = case[subsample]
    for part, items in (
        ("train", dataset.train_x),
        ("val", dataset.val),
        ("test", dataset.test),
    ):
        assert positions(items) == expected[f"{part}_indices"]
        assert [item.label for item in items] == expected[f"{part}_labels"]
    assert dataset.classnames == expected["classnames"]


def test_fewshot_selection_with_repetition_equals_the_recorded_one():
    set_random_seed(1)
    base = DatasetBase(train_x=labelled([0], "train"))
    labels = RECORDED["lists"]["A"]["train_labels"]
    chosen = base.generate_fewshot_dataset(labelled(labels, "train"), num_shots=4, repeat=True)
    expected = RECORDED["repeat_true_list_A_seed1_shots4"]["train_indices"]
    assert positions(chosen) == expected
