"""Data sets by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, SettingError, print_detail

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


def check_is_for_training(kind: Any) -> None:
    """Check that a data set has training images that are not its test images.

    Args:
        kind: class of the data set; one without ``tests_of``, which says that, has them.

    Raises:
        SettingError: it is for tests only.
    """
    if source := getattr(kind, "tests_of", ""):
        raise SettingError(
            f"{kind.__name__} is for tests only (its images are the test images): train on {source}"
        )
