"""Classification results over a test set."""

from __future__ import annotations

import os.path as osp
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch

from dassl.config import optional
from dassl.utils import check_availability, print_result
from support.files import replacing

from .build import EVALUATOR_REGISTRY

KEEP_CHOICES = ["auto", "always", "never"]
#: logits that "auto" holds, to compute what a record says of them; ImageNet has 50 million
MOST_HELD = 64_000_000


class EvaluatorBase:
    """Interface of evaluators: ``reset``, then ``process`` per batch, then ``evaluate``."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch of model outputs ``mo`` and ground truths ``gt``."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Print and return the results."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1 in percent, and counts per class, printed on request.

    Args:
        cfg: configuration; reads ``TEST.PER_CLASS_RESULT``, ``TEST.COMPUTE_CMAT`` and
            ``TEST.KEEP_PREDICTIONS``.
        lab2cname: class name of each label, needed for per-class results.

    Raises:
        ValueError: if per-class results are asked for without ``lab2cname``, or
            ``TEST.KEEP_PREDICTIONS`` is none of ``KEEP_CHOICES``.
    """

    def __init__(self, cfg: Any, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names (lab2cname)")
        keep = optional(cfg, "TEST.KEEP_PREDICTIONS")
        check_availability(keep, KEEP_CHOICES, "TEST.KEEP_PREDICTIONS")
        self._most_held = {"auto": MOST_HELD, "always": float("inf"), "never": 0}[keep]
        self.reset()

    def reset(self) -> None:
        self._correct = 0
        self._total = 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        self._per_class_res: dict[int, list[int]] = defaultdict(list)
        self._logits: list[torch.Tensor] | None = []
        self._held = 0

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch.

        Args:
            mo: logits ``(batch, n_cls)``.
            gt: labels ``(batch,)``.

        Raises:
            FloatingPointError: a logit is NaN.
        """
        # one transfer, since each one waits for the device
        rows = torch.stack([mo.argmax(dim=1), gt, mo.isnan().any(dim=1).to(gt.dtype)])
        predictions, labels, broken = rows.tolist()
        if any(broken):
            raise FloatingPointError(
                f"The model's outputs are NaN on {sum(broken)} of {len(broken)} images of a test "
                "batch: its training diverged, or its precision does not hold them; train it again "
                "with a lower OPTIM.LR, or in fp32"
            )
        matches = [int(p == label) for p, label in zip(predictions, labels, strict=True)]
        self._correct += sum(matches)
        self._total += len(labels)
        self._y_true.extend(labels)
        self._y_pred.extend(predictions)
        for label, match in zip(labels, matches, strict=True):
            self._per_class_res[label].append(match)
        self._hold(mo)

    def _hold(self, logits: torch.Tensor) -> None:
        """Keep a batch of logits in main memory, or none of the test once they are too many."""
        self._held += logits.numel()
        if self._held > self._most_held:
            self._logits = None
        if self._logits is not None:
            if logits.dtype != torch.float16:
                logits = logits.float()
            self._logits.append(logits.to("cpu", copy=True))

    def logits_and_labels(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the logits ``(N, n_cls)`` and labels ``(N,)`` of all images, in their order.

        Returns:
            Both on the CPU; None where they are not held (``TEST.KEEP_PREDICTIONS``, or more than
            ``MOST_HELD`` values), or there is no image.
        """
        if not self._logits or sum(map(len, self._logits)) != len(self._y_true):
            return None
        return torch.cat(self._logits), torch.tensor(self._y_true, dtype=torch.int32)

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the result block and return it.

        Returns:
            ``accuracy``, ``error_rate``, ``macro_f1`` (over the labels of the ground truth) and,
            with ``PER_CLASS_RESULT``, ``perclass_accuracy``, all in percent.

        Raises:
            ValueError: if no image was processed.
        """
        if self._total == 0:
            raise ValueError("nothing to evaluate: no test image was processed")
        # Takes a second to import, and only evaluation needs it.
        from sklearn.metrics import f1_score

        results: OrderedDict[str, float] = OrderedDict()
        accuracy = 100.0 * self._correct / self._total
        macro_f1 = 100.0 * f1_score(
            self._y_true, self._y_pred, average="macro", labels=np.unique(self._y_true)
        )
        results["accuracy"] = accuracy
        results["error_rate"] = 100.0 - accuracy
        results["macro_f1"] = float(macro_f1)
        print_result(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {accuracy:.2f}%\n"
            f"* error: {results['error_rate']:.2f}%\n"
            f"* macro_f1: {macro_f1:.2f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._report_classes()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix()
        return results

    def counts(self) -> dict[str, Any]:
        """Return the counts behind the results, as plain values.

        Returns:
            ``total`` and ``correct`` images, and ``per_class``: of every class that has images
            ``label``, ``name`` (None if unknown), ``total``, ``correct`` and ``accuracy``.
        """
        names = {label: str(name) for label, name in (self._lab2cname or {}).items()}
        per_class = [
            {
                "label": label,
                "name": names.get(label),
                "total": len(matches),
                "correct": sum(matches),
                "accuracy": 100.0 * sum(matches) / len(matches),
            }
            for label, matches in sorted(self._per_class_res.items())
        ]
        return {"total": self._total, "correct": self._correct, "per_class": per_class}

    def _report_classes(self) -> float:
        print_result("=> per-class result")
        per_class = self.counts()["per_class"]
        for entry in per_class:
            print_result(
                f"* class: {entry['label']} ({entry['name']})\t"
                f"total: {entry['total']:,}\t"
                f"correct: {entry['correct']:,}\t"
                f"acc: {entry['accuracy']:.2f}%"
            )
        mean = float(np.mean([entry["accuracy"] for entry in per_class]))
        print_result(f"* average: {mean:.2f}%")
        return mean

    def _save_confusion_matrix(self) -> None:
        from sklearn.metrics import confusion_matrix

        cmat = torch.from_numpy(confusion_matrix(self._y_true, self._y_pred, normalize="true"))
        path = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        with replacing(path) as tmp:
            torch.save(cmat, tmp)
        print(f"Confusion matrix is saved to {path}")
