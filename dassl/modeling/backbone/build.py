"""Backbones by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry, check_availability, print_detail

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """Base class of feature extractors, which set ``_out_features``."""

    @property
    def out_features(self) -> int | None:
        """Width of the features."""
        return self.__dict__.get("_out_features")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build a registered backbone.

    Raises:
        ValueError: for an unknown name.
    """
    check_availability(name, BACKBONE_REGISTRY.registered_names())
    if verbose:
        print_detail(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs)


def start_convolutions(net: nn.Module) -> None:
    """Initialise the convolutions of a network as He et al. do (arXiv 1502.01852)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
