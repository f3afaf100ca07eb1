"""Trainers by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability, print_detail

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: Any) -> Any:
    """Build the trainer named ``cfg.TRAINER.NAME``.

    Raises:
        ValueError: for an unknown name.
    """
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names(), "TRAINER.NAME")
    if cfg.VERBOSE:
        print_detail(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
