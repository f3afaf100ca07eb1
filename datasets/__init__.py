"""Data sets; every file of this folder is imported, so that its classes register themselves."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def extend_cfg(cfg) -> None:
    """Add the data sets' options to a configuration."""
    # all, base (first half of the classes, the larger when odd) or new (the rest)
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
