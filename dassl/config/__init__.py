"""Configuration tree: defaults, and merging of files and command-line pairs."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from .defaults import get_cfg_default
from .node import CfgNode, declare_from_file, keys_of_file

__all__ = [
    "CfgNode",
    "clean_cfg",
    "declare_from_file",
    "get_cfg_default",
    "keys_of_file",
    "optional",
]


def optional(cfg: Any, key: str) -> Any:
    """Return the value of a key that a configuration made elsewhere need not have.

    Args:
        cfg: configuration tree, also one that does not come from :func:`get_cfg_default`.
        key: dotted key, one of the default tree.

    Returns:
        Its value in ``cfg``, or else its default.
    """
    try:
        return attrgetter(key)(cfg)
    except AttributeError:
        return attrgetter(key)(get_cfg_default())


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove the nodes of all other trainers from ``cfg.TRAINER``, in place.

    Args:
        cfg: configuration with a ``TRAINER`` node.
        trainer: registry name; ``NAME`` and the node of its upper-cased form stay.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
