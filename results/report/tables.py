"""The tables of a report: those of the command line, with published figures in their cells."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..columns import Column, cells, runs_behind
from ..differences import Differences
from ..published.comparison import comparison_table
from ..published.matching import Comparison
from ..rows import Row, listing
from ..runs import METRICS, TITLES, shots_name, shots_phrase
from ..tables import Table, cell, column_order, gaps, shown_metrics

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass
class Cell:
    """A cell: its text, what stands smaller below it, and whether it is the best of its column."""

    text: str
    below: str = ""
    best: bool = False

    @property
    def head(self) -> str:
        """Its first word, the number of a mean with its deviation."""
        return self.text.partition(" ")[0]

    @property
    def rest(self) -> str:
        """What follows the first word."""
        return self.text.partition(" ")[2]

    @property
    def order(self) -> str:
        """The number that it is sorted by, which its text begins with; empty for words."""
        match = _NUMBER.match(self.text.replace(",", ""))
        return match[0] if match else ""


@dataclass
class View:
    """A table of the page; the first ``left`` columns are words, ``notes`` stand below it.

    ``words`` are further columns of words, at any place.
    """

    title: str
    header: list[str]
    lines: list[list[Cell]]
    left: int
    notes: list[str] = field(default_factory=list)
    words: Sequence[int] = ()


def view_of(table: Table) -> View:
    """Return a table of the command line."""
    lines = [[Cell(text) for text in line] for line in table.lines]
    return View(table.title, table.header, lines, table.left, table.notes)


def difference_views(differences: Differences, protocol: str) -> Iterable[View]:
    """Yield the differences from a baseline, averages first; what all lines share is in the title.

    Args:
        differences: of all tables.
        protocol: key of TITLES.
    """
    for title, found in differences.of(protocol):
        found = sorted(found, key=lambda entry: not entry[0].covered)  # stable
        shots = {row.method.shots for row, _, _ in found}
        # zero-shot rows stand beside any number
        several, configs = len(shots - {0}) > 1, {row.line.config for row, _, _ in found}
        lines = [
            [Cell(row.line.trainer, row.line.config if len(configs) > 1 else "")]
            + [Cell(row.dataset), Cell(metric)]
            + ([Cell(str(shots_name(row.method.shots)))] if several else [])
            + [Cell(f"{one.mean:+.2f}"), Cell(one.interval), Cell(one.size), Cell(one.verdict)]
            for row, metric, one in found
        ]
        header = ["method", "data set", "metric", *(["shots"] if several else [])]
        header += ["difference", "95% interval", "pairs", "verdict"]
        shared = [] if len(configs) > 1 else [f"config {found[0][0].line.config}"]
        shared += [] if several else [shots_phrase(max(shots))]
        title += f" ({', '.join(shared)})" if shared else ""
        last = len(header) - 1
        yield View(title, header, lines, 3, words=(last - 1, last))


class Published:
    """Published figures, by our row and metric.

    Args:
        comparisons: of all protocols.
        ci95: whether the rows' spreads are 95% intervals.
    """

    def __init__(self, comparisons: list[Comparison], ci95: bool) -> None:
        self.comparisons = comparisons
        self.ci95 = ci95
        self.found: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
        for c in comparisons:
            # an ablation's figures are those of other settings, or stand in the table as well
            if c.figure and c.figure.protocol != "ablation":
                self.found[id(c.row), c.metric].setdefault(c.figure.value, c.difference)

    def beside(self, row: Row, metric: str) -> str:
        """Return what is published for a metric of a row, with our difference to it."""
        figures = self.found.get((id(row), metric), {})
        return "; ".join(f"{value} published, {d:+.2f}" for value, d in figures.items())

    def table(self, protocol: str) -> View | None:
        """Return all comparisons of a protocol with their sources; None if there are none."""
        if not any(c.protocol == protocol for c in self.comparisons):
            return None
        return view_of(comparison_table(protocol, self.comparisons, self.ci95))


def _cell(row: Row | None, metric: str, published: Published) -> Cell:
    return Cell(cell(row, metric), published.beside(row, metric) if row else "")


def _mark_best(lines: list[list[Cell]], columns: Iterable[int]) -> None:
    """Mark the largest number of each column where there are several."""
    for column in columns:
        numbers = [float(line[column].order) for line in lines if line[column].order]
        for line in lines:
            if len(numbers) > 1 and line[column].order:
                line[column].best = float(line[column].order) == max(numbers)


def metrics_view(
    protocol: str, rows: list[Row], name: str, published: Published, columns: Sequence[Column]
) -> View:
    """Return base, new and H of a data set or an average, or the metrics of another protocol.

    Args:
        protocol: key of it.
        rows: of the protocol.
        name: of the data set or average.
        published: figures.
        columns: further ones.
    """
    mine = [row for row in rows if row.dataset == name]
    metrics = shown_metrics(protocol, mine)
    lines = [
        [Cell(row.method.trainer, row.method.config)]
        + [_cell(row, metric, published) for metric in metrics]
        + [Cell(str(len(row.seeds))), Cell(str(shots_name(row.method.shots)))]
        + [Cell(text) for text in cells(columns, runs_behind(row, rows))]
        for row in mine
    ]
    _mark_best(lines, range(1, 1 + len(metrics)))
    header = ["method", *metrics, "seeds", "shots", *(column.head for column in columns)]
    return View(f"{TITLES[protocol]}, {name} (%)", header, lines, 1, gaps(mine))


def accuracy_views(
    protocol: str, rows: list[Row], published: Published, columns: Sequence[Column]
) -> Iterable[View]:
    """Yield one table per source and number of shots, a line per method; zero-shot in each.

    The columns of averages come first.

    Args:
        protocol: key of it.
        rows: of the protocol.
        published: figures.
        columns: further ones.
    """
    for source in sorted({row.method.source for row in rows}):
        of_source = [row for row in rows if row.method.source == source]
        for shots in sorted({row.method.shots for row in of_source} - {0}, reverse=True) or [0]:
            chosen = [row for row in of_source if row.method.shots in (0, shots)]
            averages = {row.dataset for row in chosen if row.covered}
            # where readers look: not beyond the right edge
            datasets = sorted(column_order(chosen), key=lambda name: name not in averages)
            lines = []
            for line in sorted({row.line for row in chosen}):
                mine = {row.dataset: row for row in chosen if row.line == line}
                behind = [run for row in mine.values() for run in row.read]
                seeds = listing({len(row.seeds) for row in mine.values()})
                lines.append(
                    [Cell(line.trainer, line.config)]
                    + [_cell(mine.get(column), "accuracy", published) for column in datasets]
                    + [Cell(seeds), *map(Cell, cells(columns, behind))]
                )
            _mark_best(lines, range(1, 1 + len(datasets)))
            names = [f"{name} (source)" if name == source else name for name in datasets]
            title = TITLES[protocol] + (f" from {source}" if source else "")
            title += f", {shots_phrase(shots)} (accuracy, %)"
            header = ["method", *names, "seeds", *(column.head for column in columns)]
            yield View(title, header, lines, 1, gaps(chosen))


def views(
    protocol: str, rows: list[Row], published: Published, columns: Sequence[Column]
) -> list[View]:
    """Return the tables of a protocol, averages first; arguments as for :func:`metrics_view`."""
    mine = [row for row in rows if row.protocol == protocol]
    if METRICS[protocol] == ("accuracy",):
        return list(accuracy_views(protocol, mine, published, columns))
    averages = dict.fromkeys(row.dataset for row in mine if row.covered)
    names = [*averages, *dict.fromkeys(row.dataset for row in mine if not row.covered)]
    return [metrics_view(protocol, mine, name, published, columns) for name in names]
