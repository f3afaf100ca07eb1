"""Helpers for modules: freezing, counting, initial weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .checkpoint import (
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
]


def open_all_layers(model: nn.Module) -> None:
    """Put the model in training mode and let all parameters learn."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Let the named children learn; freeze the others and put them in eval mode.

    Args:
        model: network, possibly wrapped in ``DataParallel``.
        open_layers: name or names of direct children.

    Raises:
        ValueError: if there is no child of that name.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for name in names:
        if name not in children:
            raise ValueError(f"{name!r} is not a child of the model; it has {', '.join(children)}")
    for name, module in children.items():
        module.train(name in names)
        module.requires_grad_(name in names)


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Return the number of scalar parameters.

    Args:
        model: count all its parameters.
        params: or: a parameter group list (dicts with ``params``) or an iterable of parameters.

    Raises:
        ValueError: if neither is given.
    """
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params")
    total = 0
    for item in params:
        group = item["params"] if isinstance(item, dict) else [item]
        total += sum(p.numel() for p in group)
    return total


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise convolutions, linear layers and norms in place.

    Args:
        model: network.
        init_type: normal, xavier, kaiming or orthogonal, for weights; biases become 0.
        gain: standard deviation (normal) or gain (xavier, orthogonal). Affine norm weights become
            1.

    Raises:
        ValueError: for another ``init_type``.
    """
    initialise = {
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }
    if init_type not in initialise:
        raise ValueError(f"init_type must be one of {', '.join(initialise)}, not {init_type!r}")
    norms = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, layers):
                initialise[init_type](module.weight)
            elif isinstance(module, norms) and module.weight is not None:
                nn.init.constant_(module.weight, 1.0)
            else:
                continue
            if module.bias is not None:
                nn.init.constant_(module.bias, 0.0)
