"""Complete networks; empty until a project registers its own."""

from __future__ import annotations

from .build import NETWORK_REGISTRY, build_network

__all__ = ["NETWORK_REGISTRY", "build_network"]
