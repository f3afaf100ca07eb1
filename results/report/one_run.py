"""The page about one run: its classes, confusions and mistakes, and zero-shot beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.files import write_text

from ..inspection import Inspection, Mistake, most_confused
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
    data, method = record["data"]["name"], record["method"]
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
    found = [Card("Accuracy", f"{own.accuracy:.2f} %", f"{record['method']}: {images}")]
    if other is not None:
        gained = f"{own.accuracy - other.accuracy:+.2f} points by the training"
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
    return part


def class_view(inspection: Inspection) -> View:
    """Return a line per class, the hardest first."""

    def percent(value: float | None, sign: str = "") -> Cell:
        return Cell("-" if value is None else f"{value:{sign}.2f}")

    compared = inspection.zero_shot is not None
    lines = []
    for line in sorted(
        inspection.classes, key=lambda one: 101.0 if one.accuracy is None else one.accuracy
    ):
        cells = [Cell(shown(line.name)), Cell(str(line.images)), percent(line.accuracy)]
        if compared:
            cells += [percent(line.zero_shot), percent(line.difference, "+")]
        worst = f"{line.times} {shown(line.taken_for, 60)}" if line.times else "-"
        lines.append([*cells, Cell(worst)])
    header = ["class", "images", "accuracy", *(("zero-shot", "difference") if compared else ())]
    return View("Accuracy per class (%)", [*header, "most often taken for"], lines, 1)
