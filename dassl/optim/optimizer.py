"""Optimisers by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dassl.utils import check_availability, check_range

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]
#: settings of 0 or more that single optimisers read; the others read Adam's
_OF_SGD = ("MOMENTUM",)
_OF_RMSPROP = ("MOMENTUM", "RMSPROP_ALPHA")
_OF_ADAM = ("ADAM_BETA1", "ADAM_BETA2", "ADAM_EPS")


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: Any, param_groups: Iterable | None = None
) -> torch.optim.Optimizer:
    """Build an optimiser.

    Args:
        model: module whose parameters learn (all of them; frozen ones get no gradient and stay),
            or an iterable of parameters or parameter groups.
        optim_cfg: node ``OPTIM`` of the configuration.
        param_groups: used instead of the model's parameters when given; excludes ``STAGED_LR``.

    Returns:
        PyTorch's optimiser of that name ("amsgrad" is Adam with ``amsgrad=True``; "radam" is
        PyTorch's RAdam, where upstream brings its own variant).

    Raises:
        ValueError: for an unknown ``OPTIM.NAME``, a name in ``NEW_LAYERS`` that is no child, or a
            number that is out of the range of what it sets.
        TypeError: if ``STAGED_LR`` is used without a module.
    """
    name = optim_cfg.NAME
    check_availability(name, AVAI_OPTIMS, "OPTIM.NAME")
    _check_numbers(optim_cfg)
    lr, weight_decay = optim_cfg.LR, optim_cfg.WEIGHT_DECAY
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            param_groups = _staged_groups(model, optim_cfg)
        elif isinstance(model, nn.Module):
            param_groups = model.parameters()
        else:
            param_groups = model

    if name == "sgd":
        return torch.optim.SGD(
            param_groups,
            lr=lr,
            momentum=optim_cfg.MOMENTUM,
            weight_decay=weight_decay,
            dampening=optim_cfg.SGD_DAMPNING,
            nesterov=optim_cfg.SGD_NESTEROV,
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(
            param_groups,
            lr=lr,
            momentum=optim_cfg.MOMENTUM,
            weight_decay=weight_decay,
            alpha=optim_cfg.RMSPROP_ALPHA,
        )
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    eps = optim_cfg.ADAM_EPS
    shared = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
    if name == "adam":
        return torch.optim.Adam(param_groups, **shared)
    if name == "amsgrad":
        return torch.optim.Adam(param_groups, amsgrad=True, **shared)
    if name == "adamw":
        return torch.optim.AdamW(param_groups, **shared)
    return torch.optim.RAdam(param_groups, **shared)


def _check_numbers(optim_cfg: Any) -> None:
    own = {"sgd": _OF_SGD, "rmsprop": _OF_RMSPROP}.get(optim_cfg.NAME, _OF_ADAM)
    check_range(optim_cfg, "OPTIM", 0, math.inf, "LR", "WEIGHT_DECAY", *own)
    for key in own:
        if key.startswith("ADAM_BETA") and (beta := getattr(optim_cfg, key)) >= 1:
            raise ValueError(f"OPTIM.{key} is {beta}: use 0 or more, and less than 1")
    if optim_cfg.NAME == "sgd" and optim_cfg.SGD_NESTEROV:
        momentum, dampening = optim_cfg.MOMENTUM, optim_cfg.SGD_DAMPNING
        if momentum <= 0 or dampening != 0:
            raise ValueError(
                f"OPTIM.SGD_NESTEROV needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0, which "
                f"are {momentum} and {dampening}: change them, or set OPTIM.SGD_NESTEROV False"
            )


def _staged_groups(model: Any, optim_cfg: Any) -> list[dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"OPTIM.STAGED_LR needs a module with named children, not a {type(model).__name__}"
        )
    if isinstance(model, nn.DataParallel):
        model = model.module
    check_range(optim_cfg, "OPTIM", 0, math.inf, "BASE_LR_MULT")
    names = optim_cfg.NEW_LAYERS
    names = [names] if isinstance(names, str) else list(names)
    children = dict(model.named_children())
    for name in names:
        check_availability(name, children, "OPTIM.NEW_LAYERS")
    base = [p for n, child in children.items() if n not in names for p in child.parameters()]
    new = [p for n, child in children.items() if n in names for p in child.parameters()]
    return [
        {"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT},
        {"params": new},
    ]
