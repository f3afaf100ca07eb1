"""Data sets by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability, print_detail

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: Any) -> Any:
    """Build the data set named ``cfg.DATASET.NAME``.

    Raises:
        ValueError: for an unknown name.
    """
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "DATASET.NAME")
    if cfg.VERBOSE:
        print_detail(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
