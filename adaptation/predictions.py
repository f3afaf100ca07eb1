"""What a run keeps of the predictions of its test, and what its record says of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from torch.utils.data import SequentialSampler

from dassl.config import CfgNode, optional
from dassl.utils import print_detail
from results import predictions

#: logits that TEST.KEEP_PREDICTIONS auto stores: 16 or 32 MB
MOST_STORED = 8_000_000


def check_halves(cfg: CfgNode) -> None:
    """Check that a run that is to tell base from new classes has both.

    Raises:
        ValueError: ``TEST.BASE_AND_NEW`` does not fit the other settings.
    """
    if not optional(cfg, "TEST.BASE_AND_NEW"):
        return
    if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        raise ValueError(
            "TEST.BASE_AND_NEW tells base from new classes, and DATASET.SUBSAMPLE_CLASSES is "
            f"{cfg.DATASET.SUBSAMPLE_CLASSES}: use all"
        )
    if optional(cfg, "TEST.KEEP_PREDICTIONS") == "never":
        raise ValueError("TEST.BASE_AND_NEW needs the logits: use TEST.KEEP_PREDICTIONS auto")


def keep_predictions(trainer: Any, facts: dict[str, Any]) -> None:
    """Store the predictions of a run that has ended, and add what they show to its metrics.

    Args:
        trainer: any trainer; of one whose evaluator holds no logits nothing is kept.
        facts: of its run (``dassl.engine.run_notes.run_facts``); ``result`` gets the metrics of
            ``Predictions.scalars`` and, with ``TEST.BASE_AND_NEW``, of ``Predictions.of_halves``,
            those that an evaluator computes itself excepted.
    """
    cfg, result = trainer.cfg, facts["result"]
    held = getattr(trainer.evaluator, "logits_and_labels", None)
    found = held() if result is not None and callable(held) else None
    if found is None:
        return
    logits, labels = found
    names = getattr(trainer, "lab2cname", None) or {}
    try:
        kept = predictions.Predictions(
            logits.numpy(),
            labels.numpy(),
            [str(names.get(label, label)) for label in range(logits.shape[1])],
            _images(trainer, result["split"], labels.tolist()),
            result["split"],
        )
    except ValueError as error:  # not finite, or not of these classes
        print(f"Note: no {predictions.FILE}: {error}", file=sys.stderr)
        return
    shown = kept.scalars()
    if optional(cfg, "TEST.BASE_AND_NEW"):
        shown |= kept.of_halves()
    result["metrics"] = {**shown, **result["metrics"]}
    if optional(cfg, "TEST.KEEP_PREDICTIONS") == "auto" and logits.numel() > MOST_STORED:
        print_detail(f"{predictions.FILE} is left out: TEST.KEEP_PREDICTIONS always keeps it")
        return
    try:
        predictions.write(cfg.OUTPUT_DIR, kept)
    except (OSError, predictions.BadPredictions) as error:  # the record has what they show
        print(f"Note: no {predictions.FILE}: {error}", file=sys.stderr)


def _images(trainer: Any, split: str, labels: Sequence[int]) -> list[str]:
    """Return the paths of the tested images, below the data root where they lie there.

    Empty where the order of the images is not that of the data set's list.
    """
    loader = trainer.loader_of(split)
    items = getattr(getattr(loader, "dataset", None), "data_source", None) or ()
    in_order = isinstance(getattr(loader, "sampler", None), SequentialSampler)
    if not in_order or [getattr(item, "label", None) for item in items] != list(labels):
        return []
    root = os.path.join(os.path.abspath(os.path.expanduser(trainer.cfg.DATASET.ROOT)), "")
    paths = [item.impath.removeprefix(root) for item in items]
    return [path.replace(os.sep, "/") for path in paths] if os.sep != "/" else paths
