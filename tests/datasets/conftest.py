"""Configuration and miniature trees for the data set tests."""

from __future__ import annotations

import pytest

import datasets
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from tests.datasets.miniatures import BY_STEM, CONFIGS


@pytest.fixture
def dataset_cfg(tmp_path):
    """dataset_cfg(stem, *opts): the data set's config file, root at `tmp_path`, then options."""

    def make(stem, *opts, root=tmp_path):
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.merge_from_file(str(CONFIGS / f"{stem}.yaml"))
        cfg.merge_from_list(["DATASET.ROOT", str(root), "SEED", 1, "VERBOSE", False, *opts])
        return cfg

    return make


@pytest.fixture
def build(dataset_cfg):
    """build(stem, *opts): the data set of that name from the tree at `tmp_path`."""
    return lambda stem, *opts, **kwargs: build_dataset(dataset_cfg(stem, *opts, **kwargs))


@pytest.fixture
def tree(tmp_path):
    """tree(stem): write the miniature of that data set and return its folder."""
    return lambda stem: BY_STEM[stem].make(tmp_path)
