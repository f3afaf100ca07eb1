"""Complete networks."""

from __future__ import annotations

from .build import NETWORK_REGISTRY, build_network
from .fcn import FCN, fcn_3x32_gctx, fcn_3x64_gctx

__all__ = ["FCN", "NETWORK_REGISTRY", "build_network", "fcn_3x32_gctx", "fcn_3x64_gctx"]
