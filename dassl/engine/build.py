"""Trainers by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, print_detail

TRAINER_REGISTRY = Registry("TRAINER", contents="methods")


def config_node(trainer: str) -> str:
    """Return the name of a trainer's own node below ``cfg.TRAINER``.

    It is what the class calls its ``node``, or else its registry name in capitals, as in Dassl.

    Raises:
        KeyError: for an unknown name.
    """
    return getattr(TRAINER_REGISTRY.get(trainer), "node", trainer.upper())


def build_trainer(cfg: Any) -> Any:
    """Build the trainer named ``cfg.TRAINER.NAME``.

    Raises:
        ValueError: for an unknown name.
    """
    TRAINER_REGISTRY.check(cfg.TRAINER.NAME, "TRAINER.NAME")
    if cfg.VERBOSE:
        print_detail(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
