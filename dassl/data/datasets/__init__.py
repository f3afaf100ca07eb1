"""Data set base classes and their registry."""

from __future__ import annotations

from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset, check_is_for_training

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset", "check_is_for_training"]
