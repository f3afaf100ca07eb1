"""Data sets; every file of this folder is imported, so that its classes register themselves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dassl.config import CfgNode


def register_all() -> None:
    """Import every file of this folder; one that fails is named and left out."""
    from dassl.data.datasets import DATASET_REGISTRY

    DATASET_REGISTRY.import_files(__name__, __path__)


# sys.argv is ["-m", ...] while Python looks for the module of "python -m datasets.<command>", which
# imports what it needs itself, so that --help answers at once.
if sys.argv[:1] != ["-m"]:
    register_all()


def extend_cfg(cfg: CfgNode) -> None:
    """Add the config keys that all data sets share, and those that single ones declare."""
    from dassl.data.datasets import DATASET_REGISTRY

    from . import fewshot

    fewshot.extend_cfg(cfg)
    #: texts with one {} for the class name, or files of such texts in the data set's folder,
    #: instead of the data set's own template; docs/own_images.md says who reads them
    cfg.DATASET.TEMPLATES = ()
    DATASET_REGISTRY.declare_keys(cfg)
