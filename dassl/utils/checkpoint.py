"""Checkpoint files: ``<run>/<model name>/model.pth.tar-<epoch>`` and the text file beside them."""

from __future__ import annotations

import errno
import math
import os
import os.path as osp
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from support.command_line import Unfinished
from support.files import as_text, read_bytes, replacing, write_text
from support.weight_files import check_container, require_intact, state_dict_in, why_unreadable

from .logger import print_detail
from .tools import SettingError

__all__ = [
    "DamagedError",
    "UnwritableError",
    "latest_checkpoint",
    "load_checkpoint",
    "load_pretrained_weights",
    "model_to_test",
    "restore",
    "resume_from_checkpoint",
    "save_checkpoint",
    "unwritable",
]

POINTER = "checkpoint"
BEST = "model-best.pth.tar"
#: start of the other files' names, which the number of finished epochs follows
NUMBERED = "model.pth.tar-"


class DamagedError(ValueError):
    """A checkpoint file that is damaged, or none; the message names it."""


class UnwritableError(SettingError, Unfinished):
    """A file of a run that cannot be written; the message names it."""


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save a checkpoint and record its name in the text file ``checkpoint``.

    Both files are written under a temporary name and renamed, so an interrupted run leaves either
    the old or the new one.

    Args:
        state: ``state_dict``, ``epoch`` (1-based), ``optimizer``, ``scheduler``, ``val_result``.
        save_dir: folder, created when missing.
        is_best: copy the file to ``model-best.pth.tar``.
        remove_module_from_keys: strip the prefix ``module.`` that ``DataParallel`` adds.
        model_name: file name; empty means ``model.pth.tar-<epoch>``.

    Raises:
        UnwritableError: if the file cannot be written; a ``SettingError``.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": strip_module(state["state_dict"])}
    fpath = osp.join(save_dir, model_name or f"{NUMBERED}{state['epoch']}")
    try:
        with replacing(fpath, durable=True) as tmp:
            torch.save(state, tmp)
        print(f"Checkpoint saved to {fpath}")
        write_text(f"{osp.basename(fpath)}\n", osp.join(save_dir, POINTER), durable=True)
        if is_best:
            best = osp.join(save_dir, BEST)
            with replacing(best, durable=True) as tmp:
                shutil.copy(fpath, tmp)
            print(f'Best checkpoint saved to "{best}"')
    except (OSError, RuntimeError) as error:  # PyTorch's own where the disk is full
        raise unwritable(fpath, error) from error


def unwritable(fpath: str, error: Exception) -> UnwritableError:
    """Return the error that says why a file of a run cannot be written, and what to do.

    Args:
        fpath: the file.
        error: what the system or PyTorch raised.
    """
    return UnwritableError(
        f"cannot write {fpath} ({' '.join(str(error).split())}; {_free(osp.dirname(fpath))}): make "
        "room, or correct OUTPUT_DIR. Earlier checkpoints are kept; the same command resumes there"
    )


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code stored in it.

    Files written by upstream hold pickled scheduler objects; these are read as plain data, so
    that their weights, optimiser and scheduler states can still be used.

    Args:
        fpath: file written by :func:`save_checkpoint` (here or upstream).

    Raises:
        ValueError: if the path is None, or the file cannot be read.
        DamagedError: if the file is damaged or not a checkpoint; a ``ValueError``.
        FileNotFoundError: if there is no such file.
    """
    if fpath is None:
        raise ValueError("the path of the checkpoint is None")
    fpath = osp.abspath(osp.expanduser(fpath))
    if not osp.exists(fpath):
        raise FileNotFoundError(f'No checkpoint at "{fpath}"')
    checkpoint = read_data(fpath)
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise DamagedError(f"{fpath} is not a checkpoint of a run, but a {kind}")
    return checkpoint


def read_data(fpath: str) -> Any:
    """Read a file of PyTorch as ``load_checkpoint`` does, whatever its data are.

    Args:
        fpath: a file that is there.

    Raises:
        ValueError: if the file cannot be read.
        DamagedError: if the file is damaged; a ``ValueError``.
    """
    try:
        check_container(fpath)
        require_intact(fpath)
    except OSError as error:  # a pipe is not even looked into
        raise ValueError(f'cannot read "{fpath}": {error.strerror}') from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    try:
        return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return _load_legacy(fpath)
    except Exception as error:  # on a damaged file the reader raises nearly anything
        if not isinstance(error, UnicodeDecodeError):
            raise _damaged(fpath, error) from error
    # Text written by Python 2. PyTorch warns that it ignores the encoding, but uses it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pickle_load_args")
        try:
            return torch.load(fpath, map_location="cpu", weights_only=True, encoding="latin1")
        except Exception as error:
            raise _damaged(fpath, error) from error


def latest_checkpoint(fdir: str) -> str | None:
    """Return the path of the checkpoint that the text file ``checkpoint`` of a folder names.

    Returns:
        The path, or None when the folder or the text file is missing (no save was finished).

    Raises:
        FileNotFoundError: if the named file is gone.
    """
    pointer = osp.join(fdir, POINTER)
    if not osp.isfile(pointer):
        return None
    name = _named_by_pointer(fdir)
    fpath = osp.join(fdir, name)
    if not name or not osp.isfile(fpath):
        others = sorted(file for file in os.listdir(fdir) if file.startswith(NUMBERED))
        go_on = f"or write another name into it ({', '.join(others)}), " if others else ""
        raise FileNotFoundError(
            f'{pointer} names the checkpoint "{name}", which is not in {fdir}; put the file back, '
            f"{go_on}or train in another output folder"
        )
    return fpath


def load_newest(fdir: str, most: int | None = None) -> tuple[str, dict[str, Any]] | None:
    """Read the newest checkpoint of a folder; where it is damaged, the one before, with a warning.

    Args:
        fdir: folder of a model in a run folder.
        most: number of finished epochs that the checkpoint may have at most; None for any.

    Returns:
        Its path and its content; None where there is none, or none of so few epochs.

    Raises:
        FileNotFoundError: the named file is gone.
        ValueError: the newest one cannot be read, and no other takes its place.
    """
    newest = latest_checkpoint(fdir)
    if newest is None and osp.isdir(fdir) and (whole := _numbers(fdir)):
        # killed between a checkpoint, which is whole where it is, and the text file
        newest = osp.join(fdir, f"{NUMBERED}{whole[0]}")
    if newest is None:
        return None
    name, numbers = osp.basename(newest), _numbers(fdir)
    if (number := name.removeprefix(NUMBERED)).isdecimal():
        numbers = [n for n in numbers if n < int(number)]
    names = [name, *(f"{NUMBERED}{n}" for n in numbers if most is None or n <= most)]
    if BEST not in names and osp.isfile(osp.join(fdir, BEST)):
        names.append(BEST)
    damaged: dict[str, DamagedError] = {}
    for path in (osp.join(fdir, name) for name in names):
        try:
            checkpoint = load_checkpoint(path)
        except DamagedError as error:
            damaged[path] = error
            continue
        epoch = checkpoint.get("epoch", 0)
        if type(epoch) is not int:
            raise ValueError(
                f'"{path}" is not a checkpoint of a run: its epoch is a {type(epoch).__name__}'
            )
        if most is None or epoch <= most:
            for file, why in damaged.items():
                warn_of_damage(file, why, instead=path)
            return path, checkpoint
    if newest in damaged:
        raise damaged[newest]
    return None


def warn_of_damage(path: str, error: Exception, instead: str) -> None:
    """Warn of a damaged file, and say what is used in its place."""
    warnings.warn(f"{error}. The run continues from {instead}, not from {path}", stacklevel=3)


def _numbers(fdir: str) -> list[int]:
    """Return the epochs of the numbered checkpoints in a folder, the last one first."""
    epochs = [file.removeprefix(NUMBERED) for file in os.listdir(fdir) if file.startswith(NUMBERED)]
    return sorted((int(epoch) for epoch in epochs if epoch.isdecimal()), reverse=True)


def model_to_test(fdir: str) -> str | None:
    """Return the path of the checkpoint in a folder that its run was tested with.

    That is the best one, where the run chose one; else the last one, which the text file
    ``checkpoint`` names, or, where that is missing, the one of the highest epoch.

    Args:
        fdir: folder of a model in a run folder; it need not exist.

    Returns:
        The path, or None when there is no checkpoint.
    """
    files = os.listdir(fdir) if osp.isdir(fdir) else []
    if BEST in files:
        return osp.join(fdir, BEST)
    if POINTER in files and osp.isfile(osp.join(fdir, _named_by_pointer(fdir))):
        return latest_checkpoint(fdir)
    numbers = _numbers(fdir) if files else []
    return osp.join(fdir, f"{NUMBERED}{numbers[0]}") if numbers else None


def _named_by_pointer(fdir: str) -> str:
    pointer = osp.join(fdir, POINTER)
    try:
        name = as_text(read_bytes(pointer)).partition("\n")[0].strip()
    except ValueError as error:
        raise ValueError(f"{pointer} does not name a checkpoint: it is {error}") from error
    if name != osp.basename(name) or not name.isprintable():
        raise ValueError(f"{pointer} does not name a checkpoint beside it, but {name!r}")
    return name


def restore(
    checkpoint: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load model (strictly), optimiser and scheduler from a checkpoint in memory.

    The schedule goes on with the settings it was started with; other settings in the
    configuration of the new run are named in a warning.

    Returns:
        The number of finished epochs.

    Raises:
        ValueError: the number of epochs, or the state of the optimiser or the scheduler is damaged.
        RuntimeError: the weights do not fit the model.
    """
    if type(checkpoint.get("epoch")) is not int or checkpoint["epoch"] < 0:
        raise ValueError(f"the checkpoint is of epoch {checkpoint.get('epoch')!r:.80}, no number")
    target = model.module if isinstance(model, nn.DataParallel) else model
    target.load_state_dict(checkpoint["state_dict"])
    print_detail("Loaded model weights")
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        own = optimizer.state_dict()["param_groups"]
        _load_state(optimizer, checkpoint["optimizer"], "optimiser")
        _check_optimizer(optimizer, own)
        print_detail("Loaded optimizer")
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        own = scheduler.state_dict()
        configured = _schedule_settings(own)
        if problem := _unlike(checkpoint["scheduler"], own):
            raise ValueError(f"the checkpoint's state of the scheduler is damaged: {problem}")
        _load_state(scheduler, checkpoint["scheduler"], "scheduler")
        _warn_of_other_schedule(configured, _schedule_settings(scheduler.state_dict()))
        print_detail("Loaded scheduler")
    return checkpoint["epoch"]


def _load_state(part: Any, state: Any, name: str) -> None:
    try:
        part.load_state_dict(state)
    except Exception as error:  # what has other types than PyTorch writes raises nearly anything
        text = " ".join(str(error).split())
        raise ValueError(f"the checkpoint's state of the {name} does not fit: {text}") from error


def _check_optimizer(optimizer: torch.optim.Optimizer, own: list[dict[str, Any]]) -> None:
    """Check that a step can be taken with what an optimiser has loaded.

    Raises:
        ValueError: a setting is of another kind than before, or a tensor does not fit its weights.
    """
    groups = optimizer.state_dict()["param_groups"]
    problem = _unlike(groups, own)
    for group, before in zip(groups, own, strict=True):
        if lost := [name for name in before if name not in group]:
            problem = f"it has no {lost[0]}"
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items() if isinstance(entries, Mapping) else [("", entries)]:
            if isinstance(value, torch.Tensor):
                if value.dim() and value.shape != parameter.shape:
                    problem = f"{name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}"
                elif value.layout != torch.strided or value.is_complex() or value.is_quantized:
                    problem = f"{name} is no plain tensor"
                elif not value.isfinite().all():
                    problem = f"{name} is not finite"
            elif not isinstance(value, int | float | None):
                problem = f"{name} is a {type(value).__name__}"
    if problem:
        raise ValueError(f"the checkpoint's state of the optimiser is damaged: {problem}")


def _unlike(stored: Any, own: Any, name: str = "it") -> str:
    """Say where a stored state has other kinds of values than one's own; empty if nowhere.

    Keys that only one of them has are left to PyTorch, whose versions differ in them.
    """
    numbers = int | float | None
    if isinstance(own, Mapping) and isinstance(stored, Mapping):
        both = [key for key in own if key in stored]
        return next(filter(None, (_unlike(stored[key], own[key], key) for key in both)), "")
    if isinstance(own, list | tuple) and isinstance(stored, list | tuple):
        if len(stored) != len(own):
            return f"{name} has {len(stored)} entries, not {len(own)}"
        pairs = zip(stored, own, strict=True)
        return next(filter(None, (_unlike(one, other, name) for one, other in pairs)), "")
    if isinstance(own, numbers) and isinstance(stored, numbers if own is None else int | float):
        finite = stored is None or math.isfinite(stored)
        return "" if finite else f"{name} is {stored}"
    return "" if type(stored) is type(own) else f"{name} is a {type(stored).__name__}"


def resume_from_checkpoint(
    fdir: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Continue from the newest checkpoint of a folder.

    Args:
        fdir: folder with the text file ``checkpoint``.
        model: receives the weights; names and shapes must match exactly.
        optimizer: receives its state if given.
        scheduler: receives its state if given.

    Returns:
        The number of finished epochs, which is the index of the next one.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
    """
    found = load_newest(fdir)
    if found is None:
        raise FileNotFoundError(f'no checkpoint to resume from in "{fdir}" (no file {POINTER})')
    fpath, checkpoint = found
    print_detail(f'Loading checkpoint from "{fpath}"')
    epoch = restore(checkpoint, model, optimizer, scheduler)
    print(f"Previous epoch: {epoch}")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load all weights whose name and shape match; report the others.

    Args:
        model: network.
        weight_path: plain state dict, or checkpoint with one under a key of ``STATE_KEYS``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds no state dict; says which keys it has.
    """
    checkpoint = load_checkpoint(weight_path)
    try:
        state_dict = strip_module(state_dict_in(checkpoint, torch.Tensor))
    except ValueError as error:
        raise ValueError(f"{weight_path}: {error}") from error
    own = model.state_dict()
    matched = {k: v for k, v in state_dict.items() if k in own and own[k].shape == v.shape}
    discarded = [k for k in state_dict if k not in matched]
    if not matched:
        warnings.warn(
            f"No weight of {weight_path} matches the model in name and shape "
            f"(file: {', '.join(list(state_dict)[:3])} ...; model: {', '.join(list(own)[:3])} ...)",
            stacklevel=2,
        )
        return
    model.load_state_dict({**own, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def _schedule_settings(state: dict[str, Any]) -> dict[str, Any]:
    names = ("T_max", "eta_min", "base_lrs", "step_size", "gamma", "milestones")
    warmup = ("warmup_epoch", "cons_lr", "min_lr")
    found = {name: state[name] for name in (*names, *warmup) if name in state}
    return {**found, **_schedule_settings(state.get("successor", {}))} if state else {}


def _warn_of_other_schedule(configured: dict[str, Any], stored: dict[str, Any]) -> None:
    changed = [
        f"{name} {stored.get(name)} (configured: {value})"
        for name, value in configured.items()
        if stored.get(name) != value
    ]
    if changed:
        warnings.warn(
            "the resumed run keeps the learning-rate schedule it was started with: "
            f"{', '.join(changed)}; use another output folder to train with the new one",
            stacklevel=3,
        )


class _Inert:
    """Stands for an object of a class that a checkpoint may not bring along; runs nothing."""

    # a class attribute: some objects are made without a call of __init__
    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept the arguments of the real class, and ignore them."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _empty_dict(*args: Any) -> dict:
    return {}


def _load_legacy(fpath: str) -> dict[str, Any]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(fpath)
        # A defaultdict is filled with items after it was made, which needs a real dict.
        stand_ins = {"collections.defaultdict": _empty_dict}
        inert: list[Any] = [(stand_ins.get(name, _Inert), name) for name in names]
        with torch.serialization.safe_globals(inert):
            checkpoint = torch.load(fpath, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, _Inert):
            raise ValueError("an object")
        return _without_objects(checkpoint)
    except Exception as error:  # as above; also of a list that holds itself
        raise _damaged(fpath, error) from error


def _without_objects(value: Any) -> Any:
    """Replace each stand-in by the plain state of its object, without the object's optimiser."""
    if isinstance(value, _Inert):
        if not isinstance(value.state, dict):
            return None
        state = {k: v for k, v in value.state.items() if k != "optimizer"}
        return _without_objects(state)
    if isinstance(value, dict):
        return type(value)((k, _without_objects(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_without_objects(v) for v in value)
    return value


def _damaged(fpath: str, error: Exception) -> ValueError:
    # the system's, but for the place outside of the file that a truncated one sends the reader to
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return ValueError(f'cannot read "{fpath}": {error.strerror}')
    return DamagedError(f'cannot read "{fpath}" as a checkpoint: {why_unreadable(fpath)}')


def _free(folder: str) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        return "no such folder"


def strip_module(state_dict: Mapping[str, Any]) -> OrderedDict:
    """Return a state dict without the prefix ``module.`` that ``DataParallel`` adds."""
    return OrderedDict((k.removeprefix("module."), v) for k, v in state_dict.items())
