"""Notes that a trainer keeps of its run, and the facts of an ended run as plain values."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Any

import torch

from dassl.utils import ranks

__all__ = ["RunNotes", "device_of", "run_facts"]


def _report_nothing() -> None:
    """Do nothing at the start or the end of a run that nobody reports on."""


@dataclass
class RunNotes:
    """Notes that a trainer keeps of its run, for reports.

    The builder of a trainer may set ``on_start``, which the trainer calls when nothing can refuse
    the run any more (before the first epoch, and before a test), and ``on_end``, which the caller
    of the run calls.
    """

    on_start: Callable[[], None] = _report_nothing
    on_end: Callable[[], None] = _report_nothing
    #: wall time of each epoch, those of earlier starts as well, as far as they are known
    epoch_seconds: list[float] = field(default_factory=list)
    #: wall time of the epochs of this start, with what came between
    training_seconds: float | None = None
    #: the earlier starts whose work this one goes on with, and this one (see :meth:`begin`)
    earlier_starts: list[dict[str, Any]] = field(default_factory=list)
    this_start: dict[str, Any] = field(default_factory=dict)
    #: commit of the code, where the builder of the trainer knows it
    commit: str | None = None
    #: wall time of the last test, and what its evaluator returned
    test_seconds: float | None = None
    results: Any = None
    #: why the final model was not tested
    not_tested: str | None = None
    #: epoch and validation result of the checkpoint that was loaded
    loaded_epoch: int | None = None
    val_result: float | None = None
    #: what was chosen beside the epoch, and on which split ("on"); plain values
    selection: dict[str, Any] | None = None

    def begin(self, epoch: int, step: int, origin: str | None, device: str) -> None:
        """Note that training starts.

        Args:
            epoch: number of finished epochs.
            step: number of finished steps of the next one.
            origin: file that it goes on from; None from the beginning.
            device: name of the device.
        """
        self._began = time.perf_counter()
        self.this_start = {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "epoch": epoch,
            "step": step,
            "from": origin,
            "host": platform.node(),
            "device": device,
            "commit": self.commit,
        }

    def starts(self) -> list[dict[str, Any]]:
        """Return all starts, with the ``seconds`` that each has trained for, to the present one."""
        if not self.this_start:
            return self.earlier_starts
        seconds = self.training_seconds
        if seconds is None:
            seconds = time.perf_counter() - self._began
        return [*self.earlier_starts, self.this_start | {"seconds": seconds}]

    def history(self) -> dict[str, Any]:
        """Return what a later start is to know of this run, as plain data."""
        return {"starts": self.starts(), "epoch_seconds": list(self.epoch_seconds)}

    def load_history(self, history: Mapping[str, Any]) -> None:
        """Take over what :meth:`history` returned in the start that this one goes on from."""
        self.earlier_starts = list(history["starts"])
        self.epoch_seconds = list(history["epoch_seconds"])

    def keep_results(self, evaluator: Any) -> None:
        """Note all that an evaluator returns, of which a ``test`` may pass on one number."""
        evaluate = getattr(evaluator, "evaluate", None)
        if evaluate is None:
            return

        def evaluate_and_note(*args: Any, **kwargs: Any) -> Any:
            self.results = evaluate(*args, **kwargs)
            return self.results

        evaluator.evaluate = evaluate_and_note

    def note_loaded(self, checkpoint: Mapping[str, Any]) -> None:
        """Note the epoch and the validation result of a checkpoint that was loaded."""
        self.loaded_epoch = checkpoint["epoch"]
        self.val_result = checkpoint.get("val_result")
        self.selection = (checkpoint.get("trainer_state") or {}).get("selection")


def run_facts(trainer: Any) -> dict[str, Any]:
    """Return the facts of a trainer's run that has ended.

    Args:
        trainer: any trainer. Facts that cannot be known are None, as for one with a ``train``,
            ``test``, data manager or evaluator of its own.

    Returns:
        Mapping of plain values: ``shots``, ``images_per_class``, ``data``, ``model``, ``result``,
        ``not_tested``, ``parameters``, ``device``, ``starts``, ``seconds``, ``memory`` and
        ``versions``.
    """
    cfg, notes = trainer.cfg, trainer.run_notes
    shots = cfg.DATASET.NUM_SHOTS
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    train = getattr(dataset, "train_x", None) or ()
    counts = Counter(item.label for item in train).values()
    result, not_tested = _result(trainer), notes.not_tested
    if result is None and not_tested is None:
        not_tested = "the trainer made no test"
    return {
        "shots": shots if shots >= 1 else None,
        "images_per_class": {"least": min(counts), "most": max(counts)} if counts else None,
        "data": _data(cfg, dataset),
        "model": _model(trainer, tested=result is not None),
        "result": result,
        "not_tested": not_tested,
        "parameters": _trained_parameters(trainer),
        "device": device_of(trainer),
        "starts": notes.starts(),
        "seconds": {
            "training": _training_seconds(notes),
            "epochs": notes.epoch_seconds,
            "testing": notes.test_seconds if result is not None else None,
        },
        "memory": {"host_bytes": _host_peak(), "cuda_bytes": _cuda_peak()},
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: _version(name) for name in ("torchvision", "numpy")},
        },
    }


def _training_seconds(notes: RunNotes) -> float | None:
    """Return the seconds that all starts have trained for; None for a run that only tests."""
    if notes.training_seconds is None:
        return None
    return sum(start["seconds"] for start in notes.starts()) or notes.training_seconds


def _data(cfg: Any, dataset: Any) -> dict[str, Any]:
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    content: dict[str, Any] = {"name": cfg.DATASET.NAME, "classes": None}
    names = getattr(dataset, "classnames", None)
    if names is not None:
        names = [str(name) for name in names]
        content["classes"] = {"number": len(names), "sha256": _sha256(names), "names": names}
    for part in ("train", "train_u", "val", "test"):
        items = getattr(dataset, "train_x" if part == "train" else part, None)
        content[part] = _images(items, root) if items else None
    return content


def _images(items: Iterable[Any], root: str) -> dict[str, Any]:
    """Return the number of images, and a fingerprint of their labels and relative paths."""
    prefix = os.path.join(root, "")
    rows = [f"{item.impath.removeprefix(prefix)}\t{item.label}" for item in items]
    if os.sep != "/":
        rows = [row.replace(os.sep, "/") for row in rows]
    return {"images": len(rows), "sha256": _sha256(rows)}


def _sha256(lines: Iterable[str]) -> str:
    # file names need not be text
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _model(trainer: Any, tested: bool) -> dict[str, Any]:
    """Return the epoch of the weights, and what chose it, as far as the trainer knows."""
    notes = trainer.run_notes
    epoch = notes.loaded_epoch
    trained_to_the_end = notes.training_seconds is not None
    chosen_on = getattr(trainer, "chosen_on", None) if trained_to_the_end and tested else None
    if trained_to_the_end and chosen_on is None:
        epoch = trainer.max_epoch
    return {
        "epoch": epoch,
        "chosen_on": chosen_on,
        "val_result": notes.val_result if chosen_on else None,
        "selection": notes.selection,
    }


def _result(trainer: Any) -> dict[str, Any] | None:
    notes = trainer.run_notes
    if notes.not_tested or notes.results is None:
        return None
    counts = getattr(trainer.evaluator, "counts", None)
    counted = counts() if callable(counts) else {"total": None, "correct": None, "per_class": []}
    metrics = notes.results
    if not isinstance(metrics, Mapping):
        metrics = {"result": metrics}
    return {"split": trainer.cfg.TEST.SPLIT, "metrics": dict(metrics), **counted}


def _trained_parameters(trainer: Any) -> int:
    """Return the number of scalars that the registered optimisers change."""
    optimisers = [trainer._optims[name] for name in trainer.get_model_names()]
    groups = [group for optimiser in optimisers if optimiser for group in optimiser.param_groups]
    found = {id(p): p.numel() for group in groups for p in group["params"] if p.requires_grad}
    return sum(found.values())


def device_of(trainer: Any) -> dict[str, Any]:
    """Return type and name of a trainer's device, and how many processes share the run."""
    device = torch.device(getattr(trainer, "device", "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return {"type": device.type, "name": name, "processes": ranks.world_size()}


def _host_peak() -> int | None:
    """Return the process's peak memory in bytes; None where the system does not record it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cuda_peak() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
