"""Configuration tree: defaults, and merging of files and command-line pairs."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from .defaults import get_cfg_default
from .node import (
    DATA_SETS_KEY,
    CfgNode,
    data_sets_of_file,
    declare_from_file,
    decoded,
    keys_of_data_set,
    keys_of_file,
    leaves,
    values_of_file,
)
from .runtime import RUNTIME_KEYS, is_runtime_key

__all__ = [
    "DATA_SETS_KEY",
    "RUNTIME_KEYS",
    "CfgNode",
    "clean_cfg",
    "data_sets_of_file",
    "declare_from_file",
    "decoded",
    "get_cfg_default",
    "is_runtime_key",
    "keys_of_data_set",
    "keys_of_file",
    "leaves",
    "optional",
    "values_of_file",
]


def optional(cfg: Any, key: str) -> Any:
    """Return the value of a key, or its default where a configuration lacks it.

    Args:
        cfg: configuration tree; it need not come from :func:`get_cfg_default`.
        key: dotted key of the default tree.

    Returns:
        Its value in ``cfg``, else its default.
    """
    try:
        return attrgetter(key)(cfg)
    except AttributeError:
        return attrgetter(key)(get_cfg_default())


def clean_cfg(cfg: CfgNode, trainer: str, node: str | None = None) -> None:
    """Remove the nodes of all other trainers from ``cfg.TRAINER``, in place.

    Args:
        cfg: configuration with a ``TRAINER`` node.
        trainer: registry name.
        node: the trainer's own node, which stays (``dassl.engine.config_node``); None for the
            upper-cased name, as in Dassl.
    """
    own = trainer.upper() if node is None else node
    for key in list(cfg.TRAINER):
        if key not in ("NAME", own):
            cfg.TRAINER.pop(key)
