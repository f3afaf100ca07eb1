"""Data sets; every file of this folder is imported, so that its classes register themselves."""

from __future__ import annotations

import importlib
import pkgutil
import sys


def register_all() -> None:
    """Import every file of this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


# Python's documented value while it looks for the module of `python -m datasets.<command>`: such a
# command imports what it needs itself, so that --help answers at once.
if sys.argv[:1] != ["-m"]:
    register_all()


def extend_cfg(cfg) -> None:
    """Add the data sets' options to a configuration."""
    # all, base (first half of the classes, the larger when odd) or new (the rest)
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
