"""Configuration tree: defaults, and merging of files and command-line pairs."""

from __future__ import annotations

from .defaults import get_cfg_default
from .node import CfgNode, keys_of_file

__all__ = ["CfgNode", "clean_cfg", "get_cfg_default", "keys_of_file"]


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove the nodes of all other trainers from ``cfg.TRAINER``, in place.

    Args:
        cfg: configuration with a ``TRAINER`` node.
        trainer: registry name; ``NAME`` and the node of its upper-cased form stay.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
