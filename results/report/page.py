"""Put a report together and write it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.files import write_text
from support.words import counted

from .. import plots
from ..columns import COLUMNS, Column
from ..differences import Differences
from ..published.figures import read_published
from ..published.matching import compare
from ..rows import Row, in_order, listing
from ..runs import TABLES, TITLES
from ..tables import cell
from . import template
from .data_sets import DataSet, data_sets
from .figures import Drawn, Gallery
from .gather import (
    COUNTS,
    DAMAGED,
    LEFT_OUT,
    REPEATS,
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
from .provenance import facts_of, settings_of
from .svg import page_style
from .tables import Published, View, difference_views, views

#: state of a run -> what a number of such runs is called, and its colour
WORDS = {COUNTS: "runs count"} | {state: state for state in STATES[1:]}
KINDS = {COUNTS: "good", REPEATS: "good", LEFT_OUT: "warn", UNTESTED: "", UNFINISHED: "warn"}
KINDS |= {DAMAGED: "bad", UNKNOWN: "bad"}


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
    differences: list[View]
    published: View | None
    galleries: list[tuple[str, list[Drawn]]]
    datasets: list[DataSet]
    without_predictions: str


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
    def counted(self) -> str:
        """The number of runs in words, and how many are of seeds that were trained together."""
        together = sum(bool(run.record and run.record["seeds_together"]) for run in self.runs)
        number = counted(len(self.runs), "run")
        return f"{number}, {together} of them of seeds trained together" if together else number

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
        """The runs that do not count, and whose result none that counts has."""
        return [run for run in self.runs if run.state not in (COUNTS, REPEATS)]

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
    columns: Sequence[Column] = (),
    differences: Differences | None = None,
) -> None:
    """Write the page about all runs below an output folder, whole or not at all.

    Args:
        path: file to write.
        output: folder in the layout of the scripts.
        rows: of all tables.
        notes: every line that was said when they were made.
        ci95: whether their spreads are 95% intervals.
        columns: of the tables, beside the number of parameters.
        differences: from a baseline.

    Raises:
        OSError: the file cannot be written, or a log not be read.
    """
    with page_style():
        page = gather(output, rows, notes, ci95, columns, differences)
        write_text(render(page), path)


def gather(
    output: Path,
    rows: list[Row],
    notes: list[str],
    ci95: bool,
    columns: Sequence[Column],
    differences: Differences | None,
) -> Page:
    """Return what the page shows; arguments as for :func:`write_report`."""
    runs = find_runs(output, rows, notes)
    gallery = Gallery(rows)
    columns = list(dict.fromkeys([COLUMNS["params"], *columns]))
    published = Published(compare(rows, read_published(), ci95), ci95)
    environments = dict.fromkeys(
        run.record["environment"] for run in runs if run.record and run.record["environment"]
    )
    idle = [str(run.folder) for run in runs if run.state not in (COUNTS, REPEATS)]
    present = {run.protocol for run in runs} | {row.protocol for row in rows}
    return Page(
        output=str(output),
        made=template.now(),
        version=versions(runs),
        interval="95% interval" if ci95 else "standard deviation",
        sections=[
            section(key, rows, runs, gallery, published, columns, differences)
            for key in TITLES
            if key in present
        ],
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
    key: str,
    rows: list[Row],
    runs: list[Run],
    gallery: Gallery,
    published: Published,
    columns: Sequence[Column],
    differences: Differences | None,
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
        tables=views(key, rows, published, columns),
        differences=list(difference_views(differences, key)) if differences else [],
        published=published.table(key),
        galleries=[(title, drawn) for title, drawn in galleries if drawn],
        datasets=data_sets(mine, names, gallery),
        without_predictions=without_predictions(mine),
    )


def without_predictions(runs: list[Run]) -> str:
    """Return the line about runs without predictions; empty where all have them."""
    counting = [run for run in runs if run.state == COUNTS]
    lacking = [run for run in counting if not run.has_predictions]
    if not lacking:
        return ""
    return (
        f"{len(lacking)} of {len(counting)} runs kept no predictions, which confusion matrices and "
        "reliability diagrams are made of: test them again with TEST.KEEP_PREDICTIONS always."
    )


def best_of(key: str, rows: list[Row]) -> Best:
    """Return the best method of the first average, or else data set, that has several methods.

    Where none has, it is the only method of the first.
    """
    metric = plots.main_metric(key)
    there = [row for row in rows if metric in row.mean]
    names = plots.names_of(there)
    if not names:
        return Best("–", "no result yet")
    methods = {
        name: {(row.line.trainer, row.line.config) for row in there if row.dataset == name}
        for name in names
    }
    name = next((name for name in names if len(methods[name]) > 1), names[0])
    here = [row for row in there if row.dataset == name]
    row = max(here, key=lambda row: row.mean[metric])
    alike = sum(round(one.mean[metric], 2) == round(row.mean[metric], 2) for one in here) - 1
    more = f", and {counted(alike, 'other')} as good" if alike else ""
    seeds = len(row.seeds)
    of = f"mean of {seeds} seeds" if seeds > 1 else "of one seed"
    which = "best is" if len(methods[name]) > 1 else "only method is"
    return Best(cell(row, metric), f"{metric}, {name}: {which} {row.line}{more}; {of}")


def render(page: Page) -> str:
    """Return the page."""
    return template.render(
        "report.html.j2",
        page=page,
        tables=TABLES,
        states=WORDS,
        kinds=KINDS,
        facts_of=facts_of,
        settings_of=settings_of,
    )
