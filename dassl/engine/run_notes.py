"""Notes that a trainer keeps of its run, and the facts of an ended run as plain values."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch

from dassl.utils import ranks

__all__ = ["RunNotes", "run_facts"]


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
    #: wall time of each epoch of this start, and of all of them with what came between
    epoch_seconds: list[float] = field(default_factory=list)
    training_seconds: float | None = None
    #: wall time of the last test, and what its evaluator returned
    test_seconds: float | None = None
    results: Any = None
    #: why the final model was not tested
    not_tested: str | None = None
    #: epoch and validation result of the checkpoint that was loaded
    loaded_epoch: int | None = None
    val_result: float | None = None

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


def run_facts(trainer: Any) -> dict[str, Any]:
    """Return the facts of a trainer's run that has ended.

    Args:
        trainer: any trainer. Facts that cannot be known are None, as for one with a ``train``,
            ``test``, data manager or evaluator of its own.

    Returns:
        Mapping of plain values: ``shots``, ``images_per_class``, ``data``, ``model``, ``result``,
        ``not_tested``, ``parameters``, ``device``, ``seconds``, ``memory`` and ``versions``.
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
        "device": _device(trainer),
        "seconds": {
            "training": notes.training_seconds,
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


def _device(trainer: Any) -> dict[str, Any]:
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
