"""The methods at hand: files that register them, and the config keys that they declare."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability
from dassl.utils.registry import RegistryKeyError
from support.command_line import ROOT

from .config import declare_shared_keys

#: modules that are left out: what is wrong with their files
_left_out: dict[str, str] = {}
#: names that two files claim, of which only one can have them
_claimed_twice: dict[str, str] = {}


def register_all(package: str, folders: Iterable[str]) -> None:
    """Import every file of a package; one that fails is named and left out.

    Args:
        package: its name.
        folders: its ``__path__``.
    """
    for module in pkgutil.iter_modules(folders):
        name = f"{package}.{module.name}"
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


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys that all methods share, and those that the registered methods declare."""
    declare_shared_keys(cfg)
    for name in TRAINER_REGISTRY.registered_names():
        trainer = TRAINER_REGISTRY.get(name)
        declare = getattr(trainer, "extend_cfg", None)
        if declare is None or trainer.__module__ in _left_out:
            continue
        try:
            declare(cfg)
        except Exception as error:  # as for a file that cannot be imported
            _leave_out(trainer.__module__, Path(inspect.getfile(trainer)), error)
