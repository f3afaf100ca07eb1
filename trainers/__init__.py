"""Prompt methods. Every module here is imported, so a new method registers by being a file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import traceback
from pathlib import Path

from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability
from dassl.utils.registry import RegistryKeyError
from support.command_line import ROOT

from .predictor import Label, Predictor

__all__ = ["Label", "Predictor", "check_trainer", "extend_cfg", "register_all"]

#: modules that are left out: what is wrong with their files
_left_out: dict[str, str] = {}
#: names that two files claim, of which only one can have them
_claimed_twice: dict[str, str] = {}


def register_all() -> None:
    """Import every file of this folder; one that fails is named and left out."""
    for module in pkgutil.iter_modules(__path__):
        name = f"{__name__}.{module.name}"
        try:
            importlib.import_module(name)
        except Exception as error:  # half-written, which must not stop the other methods
            _leave_out(name, Path(module.module_finder.path, f"{module.name}.py"), error)


def _leave_out(module: str, file: Path, error: Exception) -> None:
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(file)
    ]
    shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    place = f", line {lines[-1]}" if lines else ""
    _left_out[module] = f"{shown}{place}: {type(error).__name__}: {error}"
    if isinstance(error, RegistryKeyError):
        _claimed_twice[error.name] = _left_out[module]
    print(f"Note: methods of a file are left out: {_left_out[module]}", file=sys.stderr)


def check_trainer(name: str, key: str = "") -> None:
    """Check that a name is that of a usable trainer.

    Args:
        name: registry name.
        key: config key or option that it was read from, for the message.

    Raises:
        ValueError: it is not; names the nearest one and the files that are left out.
    """
    where = f"{key}: " if key else ""
    if name in _claimed_twice:
        raise ValueError(f"{where}two files have a trainer {name!r}: {_claimed_twice[name]}")
    try:
        check_availability(name, TRAINER_REGISTRY.registered_names(), key)
    except ValueError as error:
        more = "".join(f"; left out is {text}" for text in _left_out.values())
        raise ValueError(f"{error}{more}") from error
    module = TRAINER_REGISTRY.get(name).__module__
    if module in _left_out:
        raise ValueError(f"{where}{name!r} cannot be used: {_left_out[module]}")


register_all()


def extend_cfg(cfg: CfgNode) -> None:
    """Add the defaults that the registered methods declare, and those that all of them share."""
    #: largest norm of the gradient over all trained parameters; 0 leaves gradients as they are
    cfg.OPTIM.CLIP_GRAD_NORM = 0.0
    #: False computes as public code does: every text at full context length, anew for every batch
    cfg.MODEL.FAST_ENCODERS = True
    #: what a step or a test batch may hold beside the weights, in 10^9 bytes, so that texts and
    #: test images are encoded in parts; 0 is no bound (docs/performance.md)
    cfg.MODEL.MEMORY_GB = 0.0
    cfg.register_renamed_key("OPTIM.TEXT_CHUNK", "MODEL.MEMORY_GB", "bytes, not texts")
    #: repeat the training step as a CUDA graph (docs/performance.md); has not been run on a GPU yet
    cfg.OPTIM.CUDA_GRAPH = False
    #: what features of the frozen CLIP may take on disk, in 10^6 bytes, so that they are computed
    #: once where they come again; 0 computes them each time (docs/performance.md)
    cfg.MODEL.TEACHER_CACHE_MB = 2000
    #: a run may go on with a larger OPTIM.MAX_EPOCH than it was begun with; its further epochs have
    #: the learning rates that they have in a run of that length
    cfg.TRAIN.EXTEND = False
    #: draw the random numbers that OpenAI's code draws while it builds CLIP, so that what follows
    #: has upstream's at the same seed (docs/own_trainer.md)
    cfg.MODEL.OPENAI_DRAWS = False
    for name in TRAINER_REGISTRY.registered_names():
        trainer = TRAINER_REGISTRY.get(name)
        declare = getattr(trainer, "extend_cfg", None)
        if declare is None or trainer.__module__ in _left_out:
            continue
        try:
            declare(cfg)
        except Exception as error:  # as for a file that cannot be imported
            _leave_out(trainer.__module__, Path(inspect.getfile(trainer)), error)
