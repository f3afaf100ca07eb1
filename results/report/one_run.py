"""The page about one run: its classes, confusions and mistakes, and zero-shot beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.files import write_text

from ..inspection import (
    FEW_IMAGES,
    ClassLine,
    Inspection,
    Mistake,
    few_words,
    most_confused,
    wilson,
    within_noise,
)
from ..labels import class_title, dataset_title
from ..predictions import Reliability
from ..record import facts_of as facts_of_record
from ..runs import Method
from . import template
from .data_sets import MOST_CONFUSED, PARTS, Part, add_confusion
from .figures import NUMBERED_CLASSES, Gallery
from .gather import Run
from .provenance import facts_of, settings_of
from .svg import page_style, shown
from .tables import Cell, View

#: mistakes that one fold of the page shows
PER_FOLD = 24
#: classes that tie and are named
MOST_TIED = 3
#: value of DATASET.SUBSAMPLE_CLASSES -> the part of the classes that a page is of
_PARTS = {"base": "base", "new": "new", "all": "accuracy"}


@dataclass(frozen=True)
class Photo:
    """A misclassified image; ``picture`` is a data URI, or empty where ``problem`` says why."""

    mistake: Mistake
    picture: str
    problem: str = ""


@dataclass
class Card:
    """A number on top of the page, and the words for it."""

    title: str
    value: str
    words: str


@dataclass
class OneRun:
    """All that the template shows."""

    run: Run
    title: str
    where: str
    made: str
    cards: list[Card]
    agreement: View | None
    part: Part
    photos: list[list[Photo]]
    mistakes: int
    files: Sequence[str]
    notes: Sequence[str]
    environment: str


def write_one_run(
    path: Path,
    folder: Path,
    record: dict[str, Any],
    inspection: Inspection,
    photos: Sequence[Photo],
    files: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write the page about a run, whole or not at all.

    Args:
        path: file to write.
        folder: the run's.
        record: the run's.
        inspection: of its predictions.
        photos: the mistakes to show, in their order.
        files: names of what lies beside the page.
        notes: what the reader has to know.

    Raises:
        OSError: the file cannot be written.
    """
    run = Run(folder, str(folder), trainer=record["method"], record=record)
    data = dataset_title(record["config"], record["arguments"])
    method = record["method"]
    half = facts_of_record(record).get("DATASET.SUBSAMPLE_CLASSES", "all")
    words = PARTS[_PARTS.get(half, "accuracy")]
    environment = record["environment"]
    with page_style():
        page = OneRun(
            run=run,
            title=f"{method} on {data}",
            where=f"{words} of the {inspection.own.split} images",
            made=template.now(),
            cards=cards(record, inspection),
            agreement=agreement_view(inspection, method),
            part=part_of(record, inspection, f"{data}, {words}"),
            photos=[
                list(photos[start : start + PER_FOLD]) for start in range(0, len(photos), PER_FOLD)
            ],
            mistakes=len(inspection.mistakes),
            files=files,
            notes=notes,
            environment=environment,
        )
        content = template.render(
            "one_run.html.j2",
            page=page,
            per_fold=PER_FOLD,
            facts=facts_of(run, []),
            settings=settings_of(run),
        )
    write_text(content, path)


def cards(record: dict[str, Any], inspection: Inspection) -> list[Card]:
    """Return the numbers on top: accuracy, zero-shot, and what else the run's test says."""
    own, other = inspection.own, inspection.zero_shot
    images = f"{len(own.labels):,} images, {len(own.classes):,} classes"
    interval = _interval(wilson(int((own.predicted == own.labels).sum()), len(own.labels)))
    words = f"{record['method']}: {images}; 95% interval {interval} %"
    found = [Card("Accuracy", f"{own.accuracy:.2f} %", words)]
    if other is not None:
        counts = inspection.agreement()
        assert counts is not None, "there is zero-shot"
        verdict = _verdict(*counts[1:3])
        gained = f"{own.accuracy - other.accuracy:+.2f} points by the training, {verdict}"
        found.append(Card("Zero-shot CLIP", f"{other.accuracy:.2f} %", f"same images: {gained}"))
    if own.of_halves() and "base_in_all" in record["result"]["metrics"]:
        halves = own.of_halves()
        said = f"base {halves['base_in_all']:.2f} %, new {halves['new_in_all']:.2f} %"
        found.append(Card("Base and new in all", f"{halves['H_in_all']:.2f} %", f"H: {said}"))
    wrong = len(inspection.mistakes)
    found.append(Card("Mistakes", f"{wrong:,}", f"of {len(own.labels):,} images"))
    known = [line.accuracy for line in inspection.classes if line.accuracy is not None]
    mean = sum(known) / len(known)
    found.append(Card("Mean of the classes", f"{mean:.2f} %", f"macro-F1 {own.macro_f1():.2f} %"))
    said = f"top-5 {own.top_k(5):.2f} %" if len(own.classes) > 5 else "expected calibration error"
    words = f"expected calibration error; {said}" if len(own.classes) > 5 else said
    found.append(Card("Calibration", f"{own.ece():.2f} %", words))
    return found


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"


def _verdict(gained: int, lost: int) -> str:
    return "within noise" if within_noise(gained, lost) else "beyond noise"


def agreement_view(inspection: Inspection, method: str) -> View | None:
    """Return how many images both, one or none of the run and zero-shot are right on."""
    counts = inspection.agreement()
    if counts is None:
        return None
    both, own, other, neither = counts
    lines = [
        [Cell("zero-shot right"), Cell(f"{both:,}"), Cell(f"{other:,}")],
        [Cell("zero-shot wrong"), Cell(f"{own:,}"), Cell(f"{neither:,}")],
    ]
    return View("Images", ["", f"{method} right", f"{method} wrong"], lines, 1)


def part_of(record: dict[str, Any], inspection: Inspection, title: str) -> Part:
    """Return figures and tables of the classes and their confusions."""
    own, other = inspection.own, inspection.zero_shot
    shots = record["shots"] or 0
    runs = {Method(record["method"], "", shots): own}
    if other is not None:
        runs[Method("ZeroshotCLIP", "", 0)] = other
    gallery, part = Gallery([]), Part(title)
    accuracies: dict[Method, dict[str, float]] = {}
    for method, values in zip(runs, ("accuracy", "zero_shot"), strict=False):
        accuracies[method] = {
            line.name: value
            for line in inspection.classes
            if (value := getattr(line, values)) is not None
        }
    part.figures.append(gallery.per_class(accuracies, title, bar=next(iter(runs))))
    if len(own.classes) <= MOST_CONFUSED:
        add_confusion(part, inspection.matrix, list(own.classes), record["method"], title, gallery)
        picked = most_confused(inspection.matrix, NUMBERED_CLASSES)
        if len(own.classes) > NUMBERED_CLASSES and picked:
            part.figures.insert(
                2,
                gallery.confusion(
                    inspection.matrix, own.classes, record["method"], title, picked=picked
                ),
            )
    curves = {method: (one.reliability(), one.ece()) for method, one in runs.items()}
    part.figures.append(gallery.reliability(curves, title))
    part.tables.insert(0, class_view(inspection))
    part.tables.append(bins_view(own.reliability(), record["method"]))
    return part


def bins_view(curve: Reliability, method: str) -> View:
    """Return a line per bin of confidence, with its images and the interval of its accuracy."""
    lines = []
    for low, high, confidence, accuracy, count in zip(
        *(curve.low, curve.high, curve.confidence, curve.accuracy, curve.count), strict=True
    ):
        interval = _interval(wilson(round(accuracy * count), int(count)))
        numbers = (f"{count:,}", f"{100 * confidence:.2f}", f"{100 * accuracy:.2f}", interval)
        lines.append([Cell(f"{100 * low:.0f} to {100 * high:.0f}"), *map(Cell, numbers)])
    header = ["confidence from", "images", "mean confidence", "accuracy", "95% interval"]
    few = int((curve.count < FEW_IMAGES).sum())
    notes = (
        [f"{few_words(few, len(curve.count), 'bin')}, and so is their calibration"] if few else []
    )
    return View(f"Calibration of {method} (%)", header, lines, 1, notes)


def class_view(inspection: Inspection) -> View:
    """Return a line per class, the hardest first."""

    def percent(value: float | None, sign: str = "") -> Cell:
        return Cell("-" if value is None else f"{value:{sign}.2f}")

    compared = inspection.zero_shot is not None
    lines = []
    for line in sorted(
        inspection.classes, key=lambda one: 101.0 if one.accuracy is None else one.accuracy
    ):
        cells = [Cell(shown(class_title(line.name))), Cell(str(line.images))]
        cells += [percent(line.accuracy), Cell(_interval(line.interval))]
        if compared:
            cells += [percent(line.zero_shot), percent(line.difference, "+")]
            if line.gained is not None and line.lost is not None:
                cells[-1].below = _verdict(line.gained, line.lost)
        lines.append([*cells, Cell(taken_for(line))])
    header = ["class", "images", "accuracy", "95% interval"]
    header += ["zero-shot", "difference"] if compared else []
    few = sum(0 < line.images < FEW_IMAGES for line in inspection.classes)
    notes = [few_words(few, len(lines), "class")] if few else []
    if compared:
        notes.append(
            "Within noise: chance alone would change as many images for the better or the worse in "
            "more than one of 20 cases (McNemar's exact test, of each class alone)"
        )
    header.append("most often taken for")
    return View("Accuracy per class (%)", header, lines, 1, notes, words=(len(header) - 1,))


def taken_for(line: ClassLine) -> str:
    """Return what a class is most often taken for: all that tie, or how many more there are."""
    if not line.times:
        return "-"
    names = [shown(class_title(name), 60) for name in line.taken_for[:MOST_TIED]]
    more = len(line.taken_for) - len(names)
    each = " each" if len(line.taken_for) > 1 else ""
    return f"{line.times}{each}: {', '.join(names)}" + (f" and {more} more" if more else "")
