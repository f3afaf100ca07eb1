"""What a report shows of each data set: classes, confusions, calibration, training."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from ..inspection import FEW_IMAGES, few_words
from ..labels import class_title
from ..predictions import BadPredictions, Reliability, read
from ..runs import Method
from .figures import Drawn, Gallery, confused
from .gather import COUNTS, REPEATS, Run
from .svg import shown
from .tables import Cell, View

#: parts of the classes -> their name
PARTS = {
    "base": "base classes",
    "new": "new classes",
    "all": "base and new classes together",
    "accuracy": "all classes",
}
#: classes of a data set that a table goes through
MOST_CLASSES = 1000
#: classes that a confusion matrix can have: it holds the square of them
MOST_CONFUSED = 4000
#: confusions that a table goes through
MOST_CONFUSIONS = 20
#: metric of the records -> heading
METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "top5": "top-5",
    "nll": "NLL (nats)",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
}


@dataclass
class Part:
    """What there is to see of base, new or all classes of a data set."""

    name: str
    figures: list[Drawn] = field(default_factory=list)
    tables: list[View] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class DataSet:
    """What there is to see of a data set besides its tables."""

    name: str
    parts: list[Part] = field(default_factory=list)
    training: list[Drawn] = field(default_factory=list)


def data_sets(runs: list[Run], names: list[str], gallery: Gallery) -> list[DataSet]:
    """Return what there is to see of each data set: of the most shots, where there are several.

    Args:
        runs: of a protocol.
        names: of the data sets, in order.
        gallery: draws the figures.
    """
    found = []
    for name in names:
        here = [run for run in runs if run.dataset == name]
        counting = {(run.method, run.part) for run in here if run.state == COUNTS}
        # a zero-shot run whose result counts in another protocol
        alone = [r for r in here if r.state == REPEATS and (r.method, r.part) not in counting]
        here = [run for run in here if run.state == COUNTS] + alone
        most = max((run.method.shots for run in here), default=0)
        here = [run for run in here if run.method.shots in (0, most)]
        dataset = DataSet(name)
        for key in dict.fromkeys([*PARTS, *(run.part for run in here)]):
            words = PARTS.get(key, key)
            part = part_of([run for run in here if run.part == key], words, name, gallery)
            if part.figures or part.notes:
                dataset.parts.append(part)
        dataset.training = gallery.training((run for run in here if run.trains), name)
        if dataset.parts or dataset.training:
            found.append(dataset)
    return found


def part_of(runs: list[Run], words: str, dataset: str, gallery: Gallery) -> Part:
    """Return figures and tables of the runs on one part of a data set's classes."""
    part, title = Part(words), f"{dataset}, {words}"
    by_method: dict[Method, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.method):
        by_method[run.method].append(run)
    labels = {method: style["label"] for method, style in gallery.styles(by_method).items()}
    if accuracies := class_accuracies(by_method):
        part.figures.append(gallery.per_class(accuracies, title))
        images = {_class_of(entry): entry["total"] for run in runs for entry in run.per_class}
        part.tables.append(class_table(accuracies, labels, title, images))
    add_predictions(part, by_method, title, gallery)
    if numbers := metrics_table(by_method, labels, title):
        part.tables.append(numbers)
    return part


# --- from records ---------------------------------------------------------------------------------


def class_accuracies(runs: dict[Method, list[Run]]) -> dict[Method, dict[str, float]]:
    """Return method -> class -> accuracy in percent, mean over seeds; of classes with images."""
    found = {}
    for method, of_method in runs.items():
        values: dict[str, list[float]] = defaultdict(list)
        for entry in (entry for run in of_method for entry in run.per_class):
            values[_class_of(entry)].append(entry["accuracy"])
        if values:
            found[method] = {name: fmean(of_class) for name, of_class in values.items()}
    return found


def _class_of(entry: dict[str, Any]) -> str:
    """Return the name of a record's class, or its label."""
    return str(entry["label"]) if entry["name"] is None else entry["name"]


def class_table(
    accuracies: dict[Method, dict[str, float]],
    labels: dict[Method, str],
    title: str,
    images: dict[str, int],
) -> View:
    """Return a line per class, with its number of test images, and a column per method."""
    classes = list(dict.fromkeys(name for of in accuracies.values() for name in of))
    lines = [
        [Cell(shown(class_title(name))), Cell(str(images[name]))]
        + [Cell(f"{of[name]:.2f}" if name in of else "-") for of in accuracies.values()]
        for name in classes[:MOST_CLASSES]
    ]
    left_out = len(classes) - MOST_CLASSES
    notes = [f"{left_out} more classes stand in the records"] if left_out > 0 else []
    if few := sum(images[name] < FEW_IMAGES for name in classes):
        notes.append(few_words(few, len(classes), "class"))
    header = ["class", "images", *(labels[method] for method in accuracies)]
    return View(f"Accuracy per class, {title} (%)", header, lines, 1, notes)


def metrics_table(
    runs: dict[Method, list[Run]], labels: dict[Method, str], title: str
) -> View | None:
    """Return what the records tell besides accuracy, means over seeds; None where they do not."""
    told = {
        method: [run.record["result"]["metrics"] for run in of_method if run.record]
        for method, of_method in runs.items()
    }
    some = [metrics for of_method in told.values() for metrics in of_method]
    names = [name for name in METRICS if any(_is_number(metrics.get(name)) for metrics in some)]
    if not set(names) - {"accuracy"}:
        return None
    lines = []
    for method, of_method in told.items():
        cells = [Cell(labels[method]), Cell(str(len(of_method)))]
        for name in names:
            values = [m[name] for m in of_method if _is_number(m.get(name))]
            digits = 3 if name == "nll" else 2
            cells.append(Cell(f"{fmean(values):.{digits}f}" if values else "-"))
        lines.append(cells)
    header = ["method", "seeds", *(METRICS[name] for name in names)]
    return View(f"More than accuracy, {title} (%)", header, lines, 1)


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


# --- from predictions -----------------------------------------------------------------------------


def add_predictions(
    part: Part, runs: dict[Method, list[Run]], title: str, gallery: Gallery
) -> None:
    """Add the confusion matrix of the best method, and the reliability of all of them.

    Files are read one after the other, since those of many classes are large.
    """
    kept = {
        method: [run for run in of_method if run.has_predictions]
        for method, of_method in runs.items()
    }
    kept = {method: of_method for method, of_method in kept.items() if of_method}
    if not kept:
        return
    best = max(kept, key=lambda method: fmean(run.value or 0.0 for run in kept[method]))
    curves: dict[Method, list[Reliability]] = defaultdict(list)
    classes: list[str] = []
    matrices = []
    for method, of_method in kept.items():
        for run in of_method:
            try:
                predictions = read(run.folder, run.record)
            except BadPredictions as error:
                part.notes.append(f"Not in the figures: {error}")
                continue
            assert predictions is not None, "there is a file"
            curves[method].append(predictions.reliability())
            if method == best and len(predictions.classes) <= MOST_CONFUSED:
                classes = classes or list(predictions.classes)
                if list(predictions.classes) == classes:
                    matrices.append(predictions.confusion())
    if matrices:
        label = gallery.styles(runs)[best]["label"]
        who = f"{label}, {len(matrices)} seed{'' if len(matrices) == 1 else 's'}"
        add_confusion(part, np.sum(matrices, axis=0), classes, who, title, gallery)
    if curves:
        pooled_curves = {
            method: (pooled(of_method), fmean(curve.error for curve in of_method))
            for method, of_method in curves.items()
        }
        part.figures.append(gallery.reliability(pooled_curves, title))


def add_confusion(
    part: Part, matrix: np.ndarray, classes: list[str], who: str, title: str, gallery: Gallery
) -> None:
    """Add a confusion matrix, and a table of its most frequent errors."""
    part.figures.append(gallery.confusion(matrix, classes, who, title))
    lines = [
        [Cell(true), Cell(predicted), Cell(str(n)), Cell(str(of)), Cell(f"{100 * n / of:.1f}")]
        for true, predicted, n, of in confused(matrix, classes, MOST_CONFUSIONS)
    ]
    if not lines:
        part.notes.append(f"No confusions, {title}, {who}: there are no mistakes")
        return
    header = ["true class", "predicted class", "times", "of images", "%"]
    part.tables.append(View(f"Most frequent confusions, {title}, {who}", header, lines, 2))


def pooled(curves: list[Reliability]) -> Reliability:
    """Return the reliability of the images of several seeds together; of bins of equal width.

    Its numbers of images are means of the seeds, which have the same images.
    """
    names = ("low", "high", "confidence", "accuracy", "count")
    low, high, confidence, accuracy, count = (
        np.concatenate([getattr(curve, name) for curve in curves]) for name in names
    )
    edges, bins = np.unique(low.round(6), return_inverse=True)
    total = np.bincount(bins, count)
    high, confidence, accuracy = (
        np.bincount(bins, values * count) / total for values in (high, confidence, accuracy)
    )
    return Reliability(edges, high, confidence, accuracy, total / len(curves))
