"""The predictions of a test, ``predictions.safetensors`` beside its record, and what they show.

A tested run keeps the logits of its images (``TEST.KEEP_PREDICTIONS``), so that everything here can
be computed later, without a model. docs/results.md explains the file. No torch; numpy, scipy and
scikit-learn are imported when they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.documents import parse_json
from support.files import replacing, require_ordinary
from support.words import counted

from .logs import BadLog

if TYPE_CHECKING:
    import numpy as np

FILE = "predictions.safetensors"
#: raised with every change that makes older code read a file wrongly
SCHEMA = 1
#: bins of the expected calibration errors and of a reliability curve
BINS = 10
#: the only metadata entry, JSON; safetensors writes several in random order, and equal runs are to
#: leave equal files
_ENTRY = "predictions"
#: logits that are turned into probabilities of 8 bytes at a time
_CHUNK = 1 << 22


class BadPredictions(BadLog):
    """Predictions that cannot be used; the text names the file and says why."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, over those bins of the confidence that hold images.

    Of each bin: ``low`` and ``high``, its edges (``low < confidence <= high``), ``confidence`` and
    ``accuracy``, the means of its images, all from 0 to 1, and ``count``, the number of images.
    """

    low: np.ndarray
    high: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error in percent (Guo et al., 2017, arXiv:1706.04599)."""
        gap = abs(self.confidence - self.accuracy)
        return float(100 * (gap * self.count).sum() / self.count.sum())


@dataclass(frozen=True)
class Predictions:
    """Logits and labels of N images and C classes, with what follows from them.

    Args:
        logits: ``(N, C)``, float16 or float32, scaled as for the softmax.
        labels: ``(N,)`` int32.
        classes: names of the C classes.
        images: paths of the N images, below the data root where they lie there; empty if unknown.
        split: test or val.

    Raises:
        ValueError: shapes, types or values do not fit together.
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]
    images: Sequence[str] = ()
    split: str = "test"

    def __post_init__(self) -> None:
        import numpy as np

        logits, labels = self.logits, self.labels
        if logits.dtype not in (np.float16, np.float32) or logits.ndim != 2 or not logits.size:
            raise ValueError(f"logits are {logits.dtype} of shape {logits.shape}")
        if labels.dtype != np.int32 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels are {labels.dtype} of shape {labels.shape} for {len(logits)} images"
            )
        if not np.isfinite(logits).all():
            raise ValueError("logits are not finite")
        n_cls = logits.shape[1]
        if labels.min() < 0 or labels.max() >= n_cls:
            raise ValueError(f"labels from {labels.min()} to {labels.max()} for {n_cls} classes")
        if len(self.classes) != n_cls:
            raise ValueError(f"{counted(len(self.classes), 'name')} for {n_cls} classes")
        if self.images and len(self.images) != len(labels):
            raise ValueError(f"{len(self.images)} paths for {len(labels)} images")

    # --- of the first choice ----------------------------------------------------------------------

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted labels, ``(N,)``; the first of several that have the largest logit."""
        return self.logits.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Percent of images whose predicted label is right."""
        return float(100 * (self.predicted == self.labels).mean())

    def confusion(self) -> np.ndarray:
        """Return the number of images by true (line) and predicted (column) class, ``(C, C)``."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=range(len(self.classes)))

    def per_class_accuracy(self) -> np.ndarray:
        """Return the accuracy of each class in percent, ``(C,)``; NaN where it has no image."""
        import numpy as np
        from sklearn.metrics import recall_score

        recall = recall_score(
            self.labels,
            self.predicted,
            labels=range(len(self.classes)),
            average=None,
            zero_division=np.nan,
        )
        return 100 * recall

    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that have images, in percent, as evaluators do."""
        import numpy as np
        from sklearn.metrics import f1_score

        present = np.unique(self.labels)
        return float(100 * f1_score(self.labels, self.predicted, average="macro", labels=present))

    # --- of all logits ----------------------------------------------------------------------------

    def _chunks(self) -> Iterator[slice]:
        """Yield images by the number that is turned into probabilities at a time."""
        size = max(1, _CHUNK // len(self.classes))
        for start in range(0, len(self.labels), size):
            yield slice(start, start + size)

    def probabilities(self, images: slice = slice(None)) -> np.ndarray:
        """Return the softmax of images' logits, float64."""
        import numpy as np
        from scipy.special import softmax

        return softmax(self.logits[images].astype(np.float64), axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of each predicted label, ``(N,)``."""
        import numpy as np

        return np.concatenate([self.probabilities(some).max(axis=1) for some in self._chunks()])

    def top_k(self, k: int) -> float:
        """Return the percent of images whose label is among the k largest logits.

        Args:
            k: from 1 on; of as many classes or fewer, every label is.
        """
        from sklearn.metrics import accuracy_score, top_k_accuracy_score

        every = range(len(self.classes))
        if k >= len(every):
            return 100.0
        if k == 1:  # scikit-learn takes two classes for one score
            return float(100 * accuracy_score(self.labels, self.predicted))
        found = sum(
            top_k_accuracy_score(
                self.labels[some], self.logits[some], k=k, labels=every, normalize=False
            )
            for some in self._chunks()
        )
        return float(100 * found / len(self.labels))

    def nll(self) -> float:
        """Return the mean negative log-likelihood of the labels, in nats."""
        from sklearn.metrics import log_loss

        every = range(len(self.classes))
        if len(every) == 1:  # certain, and scikit-learn refuses it
            return 0.0
        total = sum(
            log_loss(self.labels[some], self.probabilities(some), labels=every, normalize=False)
            for some in self._chunks()
        )
        return float(total / len(self.labels))

    def reliability(self, bins: int = BINS, adaptive: bool = False) -> Reliability:
        """Return confidence against accuracy.

        Args:
            bins: their number.
            adaptive: bins of equally many images (Nixon et al., 2019, arXiv:1904.01685) instead of
                equal width.
        """
        import numpy as np
        from sklearn.calibration import calibration_curve

        sure = self.confidence.clip(0, 1)
        right = (self.predicted == self.labels).astype(int)
        accuracy, confidence = calibration_curve(
            right, sure, pos_label=1, n_bins=bins, strategy="quantile" if adaptive else "uniform"
        )
        # scikit-learn's bins, which it does not return
        edges = np.linspace(0, 1, bins + 1)
        if adaptive:
            edges = np.percentile(sure, edges * 100)
        count = np.bincount(np.searchsorted(edges[1:-1], sure), minlength=bins)
        held = count > 0
        return Reliability(edges[:-1][held], edges[1:][held], confidence, accuracy, count[held])

    def ece(self, bins: int = BINS, adaptive: bool = False) -> float:
        """Return the expected calibration error in percent; arguments as for ``reliability``."""
        return self.reliability(bins, adaptive).error

    def scalars(self) -> dict[str, float]:
        """Return what records keep: ``top5``, ``ece``, ``adaptive_ece`` in percent, and ``nll``."""
        return {
            "top5": self.top_k(5),
            "nll": self.nll(),
            "ece": self.ece(),
            "adaptive_ece": self.ece(adaptive=True),
        }

    # --- of base and new classes together ---------------------------------------------------------

    def of_halves(self) -> dict[str, float]:
        """Return how base and new classes are told apart among all of them, in percent.

        The base classes are the first half of all, the larger one when odd.

        Returns:
            ``base_in_all`` and ``new_in_all``: accuracy of the images of either half, with all
            classes to choose from; ``H_in_all``: their harmonic mean (Xian et al., 2017,
            arXiv:1703.04394); ``auroc``: area under the ROC curve of base against new images. Its
            score is the largest logit of a base class minus that of a new one, the quantity that
            calibrated stacking has a threshold for (Chao et al., 2016, arXiv:1605.04253). Empty
            where a half has no image.
        """
        from sklearn.metrics import roc_auc_score

        n_base = (len(self.classes) + 1) // 2
        is_base = self.labels < n_base
        if is_base.all() or not is_base.any():
            return {}
        right = self.predicted == self.labels
        base, new = (float(100 * right[half].mean()) for half in (is_base, ~is_base))
        score = self.logits[:, :n_base].max(axis=1).astype("float64") - self.logits[:, n_base:].max(
            axis=1
        )
        return {
            "base_in_all": base,
            "new_in_all": new,
            "H_in_all": 2 * base * new / (base + new) if base + new else 0.0,
            "auroc": float(100 * roc_auc_score(is_base, score)),
        }


# --- writing and reading --------------------------------------------------------------------------


def write(folder: str | Path, predictions: Predictions) -> Path:
    """Write the predictions of a test, whole or not at all.

    Args:
        folder: the run's.
        predictions: to keep. Logits are stored in float16 where that holds them as they are, as
            those of a model that computes in it, else in float32.

    Returns:
        The file.

    Raises:
        BadPredictions: safetensors cannot hold them.
        OSError: the file cannot be written.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save

    path = Path(folder, FILE)
    with np.errstate(over="ignore"):
        half = predictions.logits.astype(np.float16)
    logits = half if np.array_equal(half, predictions.logits) else predictions.logits
    about = {
        "schema": SCHEMA,
        "split": predictions.split,
        "classes": list(predictions.classes),
        "images": list(predictions.images),
    }
    tensors = {
        "logits": np.ascontiguousarray(logits),
        "labels": np.ascontiguousarray(predictions.labels),
    }
    try:
        content = save(tensors, metadata={_ENTRY: json.dumps(about)})
    except SafetensorError as error:
        raise BadPredictions(f"{path}: cannot be written: {error}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def forget(folder: str | Path) -> None:
    """Remove a run folder's predictions, if there are any: a new run begins there."""
    Path(folder, FILE).unlink(missing_ok=True)


def read(folder: str | Path, record: Mapping[str, Any] | None = None) -> Predictions | None:
    """Return the predictions of a run; None where the folder has none.

    Args:
        folder: the run's.
        record: the run's (``results.record.read``), which they have to fit.

    Raises:
        BadPredictions: they are damaged, of a newer version, or not those of the record.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder, FILE)
    if not path.exists():
        return None
    try:
        require_ordinary(path)
        with safe_open(path, framework="numpy") as file:
            about = _checked_about((file.metadata() or {}).get(_ENTRY), path)
            if set(file.keys()) != {"logits", "labels"}:
                raise _damaged(path, f"it holds {', '.join(sorted(file.keys())) or 'nothing'}")
            logits, labels = file.get_tensor("logits"), file.get_tensor("labels")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    except (TypeError, AttributeError, KeyError) as error:  # of types that numpy does not have
        raise _damaged(path, f"tensors of a type that numpy lacks: {error}") from error
    try:
        found = Predictions(logits, labels, about["classes"], about["images"], about["split"])
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if record is not None:
        _check_fits(found, record, path)
    return found


def _damaged(path: Path, what: str) -> BadPredictions:
    return BadPredictions(f"{path}: damaged ({what}): test the run again, or remove the file")


def _checked_about(text: str | None, path: Path) -> dict[str, Any]:
    """Return the content of the metadata entry.

    Raises:
        BadPredictions: it is missing, of a newer version, or has other types.
    """
    if text is None:
        raise _damaged(path, f"no entry {_ENTRY!r}")
    try:
        about = parse_json(text)
    except ValueError as error:
        raise _damaged(path, f"its entry {_ENTRY!r} is not JSON: {error}") from error
    schema = about.get("schema") if isinstance(about, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise BadPredictions(
            f"{path}: written by a newer version (schema {schema}, this one reads {SCHEMA}): "
            "update the toolbox"
        )
    if type(schema) is not int or not isinstance(about.get("split"), str):
        raise _damaged(path, "no schema or split")
    for name in ("classes", "images"):
        texts = about.get(name)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _damaged(path, f"{name} are no list of texts")
    return about


def _check_fits(found: Predictions, record: Mapping[str, Any], path: Path) -> None:
    """Check that predictions are those of a record.

    Raises:
        BadPredictions: images, right answers or classes differ.
    """
    result, classes = record["result"], record["data"]["classes"]
    right = int((found.predicted == found.labels).sum())
    said: dict[str, tuple[Any, Any]] = {"a test": (True, result is not None)}
    if result is not None:
        said["images"] = len(found.labels), result["total"]
        said["right answers"] = right, result["correct"]
    if classes is not None:
        said["classes"] = len(found.classes), classes["number"]
    for name, (here, there) in said.items():
        if there is not None and here != there:
            raise BadPredictions(
                f"{path}: not of the run beside it ({name}: {here}, in its record {there}): test "
                "the run again, or remove the file"
            )
