"""Heads by name."""

from __future__ import annotations

from typing import Any

from dassl.utils import Registry, check_availability, print_detail

HEAD_REGISTRY = Registry("HEAD")


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a registered head.

    Raises:
        ValueError: for an unknown name.
    """
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        print_detail(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)
