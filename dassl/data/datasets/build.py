"""Data sets by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, print_detail

DATASET_REGISTRY = Registry("DATASET", contents="data sets")


def build_dataset(cfg: Any) -> Any:
    """Build the data set named ``cfg.DATASET.NAME``.

    Raises:
        ValueError: for an unknown name, or that of a data set whose file has an error.
    """
    DATASET_REGISTRY.check(cfg.DATASET.NAME, "DATASET.NAME")
    if cfg.VERBOSE:
        print_detail(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
