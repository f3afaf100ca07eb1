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
    """Add the options that all data sets share, and those that one declares (`extend_cfg`)."""
    from dassl.data.datasets import DATASET_REGISTRY

    # all, base (first half of the classes, the larger when odd) or new (the rest)
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    # texts with one {} for the class name, or files of such texts in the data set's folder, instead
    # of the data set's own template; docs/own_images.md says who reads them
    cfg.DATASET.TEMPLATES = ()
    for name in DATASET_REGISTRY.registered_names():
        declare = getattr(DATASET_REGISTRY.get(name), "extend_cfg", None)
        if declare is not None:
            declare(cfg)
