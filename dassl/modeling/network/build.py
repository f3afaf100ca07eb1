"""Networks by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability, print_detail

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build a registered network.

    Raises:
        ValueError: for an unknown name.
    """
    check_availability(name, NETWORK_REGISTRY.registered_names())
    if verbose:
        print_detail(f"Network: {name}")
    return NETWORK_REGISTRY.get(name)(**kwargs)
