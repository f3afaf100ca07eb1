"""Evaluators by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability, print_detail

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: Any, **kwargs: Any) -> Any:
    """Build the evaluator named ``cfg.TEST.EVALUATOR``.

    Args:
        cfg: configuration.
        kwargs: passed on, usually ``lab2cname``.

    Raises:
        ValueError: for an unknown name.
    """
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names(), "TEST.EVALUATOR")
    if cfg.VERBOSE:
        print_detail(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
