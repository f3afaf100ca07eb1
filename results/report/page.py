"""Put a report together and write it."""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dassl.config import leaves
from support.files import write_text

from .. import plots
from ..predictions import BadPredictions, Predictions, Reliability
from ..predictions import read as read_predictions
from ..published.figures import read_published
from ..published.matching import compare
from ..rows import Row, in_order, listing
from ..runs import TABLES, TITLES, Method, has_halves
from ..tables import cell
from .figures import Drawn, Gallery, confused
from .gather import (
    COUNTS,
    DAMAGED,
    LEFT_OUT,
    STATES,
    UNFINISHED,
    UNKNOWN,
    UNTESTED,
    Coverage,
    Run,
    coverage_of,
    failures,
    find_runs,
)
from .svg import DARK, page_style, shown
from .tables import Cell, Published, View, views

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).parent
#: parts of the classes -> their name
PARTS = {"base": "base classes", "new": "new classes", "accuracy": "all classes"}
#: classes of a data set that a table goes through
MOST_CLASSES = 1000
NO_PREDICTIONS = (
    "No run kept its predictions, so there is no confusion matrix and no reliability diagram: "
    "test again with TEST.KEEP_PREDICTIONS always."
)


#: state of a run -> what a number of such runs is called, and its colour
WORDS = {COUNTS: "runs count"} | {state: state for state in STATES[1:]}
KINDS = {COUNTS: "good", LEFT_OUT: "warn", UNTESTED: "", UNFINISHED: "warn"}
KINDS |= {DAMAGED: "bad", UNKNOWN: "bad"}


@dataclass
class Part:
    """What a section shows of base, new or all classes of a data set."""

    name: str
    figures: list[Drawn] = field(default_factory=list)
    tables: list[View] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class DataSet:
    """What a section shows of a data set besides its tables."""

    name: str
    parts: list[Part] = field(default_factory=list)
    training: list[Drawn] = field(default_factory=list)


@dataclass
class Best:
    """The best method of a protocol: its number, and the words for it."""

    value: str
    words: str


@dataclass
class Section:
    """A protocol on the page."""

    key: str
    title: str
    states: dict[str, int]
    coverage: Coverage
    best: Best
    tables: list[View]
    published: View | None
    galleries: list[tuple[str, list[Drawn]]]
    datasets: list[DataSet]


@dataclass
class Page:
    """All that the template shows."""

    output: str
    made: str
    version: str
    interval: str
    sections: list[Section]
    runs: list[Run]
    environments: list[str]
    failures: list[tuple[str, str]]
    notes: list[str]

    @property
    def groups(self) -> list[tuple[str, list[Run]]]:
        """The runs of each protocol, data set and method."""
        found: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            words = [TITLES[run.protocol], run.dataset, str(run.method)] if run.protocol else []
            found[", ".join(words) or UNKNOWN].append(run)
        return sorted(found.items())

    @property
    def idle(self) -> list[Run]:
        """The runs that do not count."""
        return [run for run in self.runs if run.state != COUNTS]

    @property
    def lacking(self) -> int:
        """How many entries the list of what is missing or failed has."""
        return len(self.failures) + len(self.idle) + len(self.notes)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing failed."""
        return not self.lacking


def write_report(
    path: Path,
    output: Path,
    rows: list[Row],
    notes: list[str],
    ci95: bool,
) -> None:
    """Write the page about all runs below an output folder, whole or not at all.

    Args:
        path: file to write.
        output: folder in the layout of the scripts.
        rows: of all tables.
        notes: every line that was said when they were made.
        ci95: whether their spreads are 95% intervals.

    Raises:
        OSError: the file cannot be written, or a log not be read.
    """
    with page_style():
        page = gather(output, rows, notes, ci95)
        write_text(render(page), path)


def gather(output: Path, rows: list[Row], notes: list[str], ci95: bool) -> Page:
    """Return what the page shows; arguments as for :func:`write_report`."""
    runs = find_runs(output, rows, notes)
    gallery = Gallery(rows)
    published = Published(compare(rows, read_published(), ci95), ci95)
    environments = dict.fromkeys(
        run.record["environment"] for run in runs if run.record and run.record["environment"]
    )
    idle = [str(run.folder) for run in runs if run.state != COUNTS]
    present = {run.protocol for run in runs} | {row.protocol for row in rows}
    return Page(
        output=str(output),
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=versions(runs),
        interval="95% interval" if ci95 else "standard deviation",
        sections=[section(key, rows, runs, gallery, published) for key in TITLES if key in present],
        runs=runs,
        environments=list(environments),
        failures=failures(output),
        # those of a run stand beside its name
        notes=[n for n in dict.fromkeys(notes) if not any(folder in n for folder in idle)],
    )


def versions(runs: list[Run]) -> str:
    """Return the versions of the toolbox that made the runs."""
    found = {str(run.record["versions"].get("library", "")) for run in runs if run.record}
    return listing(found - {""})


def section(
    key: str, rows: list[Row], runs: list[Run], gallery: Gallery, published: Published
) -> Section:
    """Return a protocol's part of the page."""
    mine = [run for run in runs if run.protocol == key]
    of_protocol = [row for row in rows if row.protocol == key]
    names = in_order({r.dataset for r in mine} | {r.dataset for r in of_protocol if not r.covered})
    counts = Counter(run.state for run in mine)
    galleries = [("Accuracy against trainable parameters", gallery.parameters(key))]
    if key == "base2new":
        galleries.insert(0, ("Base against new classes", gallery.base_to_new()))
    if key == "fewshot":
        galleries.insert(0, ("Accuracy against shots", gallery.few_shot()))
    return Section(
        key=key,
        title=TITLES[key],
        states={state: counts[state] for state in STATES if counts[state]},
        coverage=coverage_of(key, rows, names),
        best=best_of(key, of_protocol),
        tables=views(key, rows, published),
        published=published.table(key),
        galleries=[(title, drawn) for title, drawn in galleries if drawn],
        datasets=data_sets(mine, names, gallery),
    )


def best_of(key: str, rows: list[Row]) -> Best:
    """Return the best method of the first average, or of the first data set."""
    metric = "H" if has_halves(key) else "accuracy"
    names = plots.names_of(row for row in rows if metric in row.mean)
    if not names:
        return Best("–", "no result yet")
    here = [row for row in rows if row.dataset == names[0] and metric in row.mean]
    row = max(here, key=lambda row: row.mean[metric])
    return Best(cell(row, metric), f"{metric}, {names[0]}: best is {row.line}")


# --- data set by data set -------------------------------------------------------------------------


def data_sets(runs: list[Run], names: list[str], gallery: Gallery) -> list[DataSet]:
    """Return what there is to see of each data set: of the most shots, where there are several."""
    found = []
    for name in names:
        here = [run for run in runs if run.dataset == name and run.state == COUNTS]
        most = max((run.method.shots for run in here), default=0)
        here = [run for run in here if run.method.shots in (0, most)]
        dataset = DataSet(name)
        for part, words in PARTS.items():
            if of_part := [run for run in here if run.part == part]:
                dataset.parts.append(part_of(of_part, words, f"{name}, {words}", gallery))
        dataset.training = gallery.training((run for run in here if run.trains), name)
        if dataset.training or any(p.figures or p.notes for p in dataset.parts):
            found.append(dataset)
    return found


def part_of(runs: list[Run], words: str, title: str, gallery: Gallery) -> Part:
    """Return figures and tables of the runs on one part of a data set's classes."""
    part = Part(words)
    accuracies = class_accuracies(runs)
    if accuracies:
        part.figures.append(gallery.per_class(accuracies, title))
        part.tables.append(class_table(accuracies, title, gallery))
    predictions, problems = predictions_of(runs)
    part.notes += problems
    if predictions:
        best = max(predictions, key=lambda m: fmean(p.accuracy for p in predictions[m]))
        add_confusion(part, best, predictions[best], title, gallery)
        add_reliability(part, predictions, title, gallery)
    elif not problems:
        part.notes.append(NO_PREDICTIONS)
    return part


def class_accuracies(runs: list[Run]) -> dict[Method, dict[str, float]]:
    """Return method -> class -> accuracy in percent, mean over seeds; of classes with images."""
    found: dict[Method, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for entry in run.per_class:
            name = str(entry["label"]) if entry["name"] is None else entry["name"]
            found[run.method][name].append(entry["accuracy"])
    return {
        method: {name: fmean(values) for name, values in classes.items()}
        for method, classes in sorted(found.items())
    }


def class_table(accuracies: dict[Method, dict[str, float]], title: str, gallery: Gallery) -> View:
    """Return a line per class and a column per method."""
    labels = {method: style["label"] for method, style in gallery.styles(accuracies).items()}
    classes = list(dict.fromkeys(name for of in accuracies.values() for name in of))
    lines = [
        [Cell(shown(name))]
        + [Cell(f"{of[name]:.2f}" if name in of else "-") for of in accuracies.values()]
        for name in classes[:MOST_CLASSES]
    ]
    left_out = len(classes) - MOST_CLASSES
    notes = [f"{left_out} more classes stand in the records"] if left_out > 0 else []
    return View(
        f"Accuracy per class, {title} (%)",
        ["class", *(labels[method] for method in accuracies)],
        lines,
        1,
        notes,
    )


def predictions_of(runs: list[Run]) -> tuple[dict[Method, list[Predictions]], list[str]]:
    """Return method -> the predictions of its seeds, and what is wrong with others."""
    found: dict[Method, list[Predictions]] = defaultdict(list)
    problems = []
    for run in runs:
        try:
            predictions = read_predictions(run.folder, run.record)
        except BadPredictions as error:
            problems.append(f"No figures of it: {error}")
            continue
        if predictions is not None:
            found[run.method].append(predictions)
    return dict(sorted(found.items())), problems


def add_confusion(
    part: Part, best: Method, predictions: list[Predictions], title: str, gallery: Gallery
) -> None:
    """Add the confusion matrix of a method, over its seeds, and its most frequent errors."""
    classes = predictions[0].classes
    alike = [p for p in predictions if list(p.classes) == list(classes)]
    matrix: np.ndarray = sum(p.confusion() for p in alike)  # type: ignore[assignment]
    who = f"{best.trainer}, {len(alike)} seed{'' if len(alike) == 1 else 's'}"
    part.figures.append(gallery.confusion(matrix, classes, who, title))
    lines = [
        [Cell(true), Cell(predicted), Cell(str(n)), Cell(str(of)), Cell(f"{100 * n / of:.1f}")]
        for true, predicted, n, of in confused(matrix, classes, 20)
    ]
    header = ["true class", "predicted class", "times", "of images", "%"]
    part.tables.append(View(f"Most frequent confusions, {title}, {who}", header, lines, 2))


def add_reliability(
    part: Part, predictions: dict[Method, list[Predictions]], title: str, gallery: Gallery
) -> None:
    """Add the reliability diagram of all methods, and their calibration in numbers."""
    curves = {
        method: (pooled([p.reliability() for p in of]), fmean(p.ece() for p in of))
        for method, of in predictions.items()
    }
    part.figures.append(gallery.reliability(curves, title))
    styles = gallery.styles(predictions)
    lines = []
    for method, of in predictions.items():
        scalars = [p.scalars() for p in of]
        numbers = {name: fmean(s[name] for s in scalars) for name in scalars[0]}
        lines.append(
            [Cell(styles[method]["label"]), Cell(str(len(of)))]
            + [Cell(f"{fmean(p.accuracy for p in of):.2f}")]
            + [Cell(f"{value:.3f}" if name == "nll" else f"{value:.2f}")
               for name, value in numbers.items()]
        )  # fmt: skip
    header = ["method", "seeds", "accuracy", *SCALARS]
    part.tables.append(View(f"Calibration, {title} (%; NLL in nats)", header, lines, 1))


#: as ``Predictions.scalars`` orders them
SCALARS = ("top-5", "NLL", "ECE", "adaptive ECE")


def pooled(curves: list[Reliability]) -> Reliability:
    """Return the reliability of the images of several seeds together; of bins of equal width."""
    import numpy as np

    bins: dict[float, list[tuple[float, float, float, int]]] = defaultdict(list)
    for curve in curves:
        columns = curve.low, curve.high, curve.confidence, curve.accuracy, curve.count
        for low, *rest in zip(*columns, strict=True):
            bins[round(float(low), 6)].append(tuple(rest))
    lines = []
    for low, parts in sorted(bins.items()):
        highs, confidences, accuracies, counts = (
            np.array(column) for column in zip(*parts, strict=True)
        )
        lines.append(
            (low, highs[0], np.average(confidences, weights=counts),
             np.average(accuracies, weights=counts), counts.sum())
        )  # fmt: skip
    return Reliability(*(np.array(column) for column in zip(*lines, strict=True)))


# --- a run in the page ----------------------------------------------------------------------------


def facts_of(run: Run, environments: list[str]) -> list[tuple[str, str]]:
    """Return what the page tells of a run: name and text."""
    record = run.record
    if record is None:
        return [("record", "none: read from its log")] if run.result else []
    seconds, memory, git = record["seconds"], record["memory"], record["git"]
    found: list[tuple[str, Any]] = [
        ("started", record["started"]),
        ("ended", record["ended"]),
        ("training", seconds["training"] and f"{seconds['training']:.1f} s"),
        ("epochs", len(seconds["epochs"]) or None),
        ("test", seconds["testing"] and f"{seconds['testing']:.1f} s"),
        ("device", f"{record['device']['type']}, {record['device']['name']}"),
        ("most memory", memory["host_bytes"] and f"{memory['host_bytes'] / 2**20:,.0f} MiB"),
        ("on the GPU", memory["cuda_bytes"] and f"{memory['cuda_bytes'] / 2**20:,.0f} MiB"),
        ("parameters", f"{record['parameters']:,}"),
        ("weights of epoch", record["model"]["epoch"]),
        ("chosen on", record["model"]["chosen_on"]),
        ("weights from", record["model"]["model_dir"]),
        ("seeds together", record["seeds_together"] and listing(record["seeds_together"])),
        ("versions", ", ".join(f"{n} {v}" for n, v in record["versions"].items())),
        ("code", git and git["commit"] + (", with changes" if git["dirty"] else "")),
        ("classes", record["data"]["classes"] and record["data"]["classes"]["number"]),
    ]
    for split in ("train", "val", "test"):
        if images := record["data"][split]:
            found.append((f"{split} images", f"{images['images']:,}, {images['sha256'][:12]}"))
    if record["result"]:
        numbers = record["result"]["metrics"].items()
        found.append(("result", ", ".join(f"{n} {v:.2f}" if isinstance(v, float) else f"{n} {v}"
                                          for n, v in numbers)))  # fmt: skip
    if record["environment"] in environments:
        found.append(("environment", f"no. {environments.index(record['environment']) + 1} below"))
    return [(name, shown(text)) for name, text in found if text is not None and text != ""]


def settings_of(run: Run) -> list[tuple[str, str, str]]:
    """Return all settings of a run: key, value, and what gave it (empty for a default)."""
    if run.record is None:
        return []
    given = run.record["given"]
    return [
        (key, shown(value), shown(given.get(key, "")))
        for key, value in leaves(run.record["config"])
    ]


def render(page: Page) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    script = (FOLDER / "report.js").read_text("utf-8")
    palette = {f"c{colour[1:].lower()}": (colour, dark) for colour, dark in DARK.items()}
    return environment.get_template("report.html.j2").render(
        page=page,
        palette=palette,
        style=Markup((FOLDER / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tables=TABLES,
        states=WORDS,
        kinds=KINDS,
        facts_of=facts_of,
        settings_of=settings_of,
    )
