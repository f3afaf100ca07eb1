"""Rows as tables, CSV and JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from .columns import Column, blanks, cells, runs_behind, values
from .latex import latex_table
from .record import unit
from .rows import Row, in_order, listing
from .runs import METRICS, TABLES, TITLES, has_halves, shots_name, shots_phrase

if TYPE_CHECKING:
    from .differences import Differences

# Largest width of a table with a line per method, in characters; a wider one is transposed if that
# makes it narrower.
MAX_WIDTH = 120


@dataclass
class Table:
    """Title, header and lines of a table; ``left`` columns are words, ``notes`` stand below it.

    Of ``ranked`` columns LaTeX marks the best, the smallest number where ``lower``, and columns of
    ``settings`` it leaves out where all lines have the same.
    """

    title: str
    header: list[str]
    lines: list[list[str]]
    left: int = 2
    notes: list[str] = field(default_factory=list)
    ranked: Sequence[int] = ()
    lower: bool = False
    settings: Sequence[int] = ()

    def render(self, style: str) -> str:
        """Return the table with title and notes.

        Args:
            style: github or latex.
        """
        if style == "latex" and self.lines:
            return latex_table(
                *(self.title, self.header, self.lines, self.left, self.notes),
                *(self.ranked, self.lower, self.settings),
            )
        columns = ["left"] * self.left + ["right"] * (len(self.header) - self.left)
        table = tabulate(
            self.lines, self.header, tablefmt="github", disable_numparse=True, colalign=columns
        )
        title, note = ("% ", "% ") if style == "latex" else ("### ", "- ")
        if not self.lines:
            table = note + "nothing"
        notes = "".join(f"{note}{line}\n" for line in self.notes)
        return f"{title}{self.title}\n\n{table}\n" + (f"\n{notes}" if notes else "")

    def width(self) -> int:
        """Return the number of characters of its lines on a terminal."""
        return len(self.render("github").splitlines()[2])


#: metrics of which less is better
LOWER = ("error", "nll", "ece", "adaptive_ece")
# Marks results whose epoch the test images chose.
CHOSEN = "*"


def cell(row: Row | None, metric: str) -> str:
    """Return a mean with its spread, which one seed does not have, mark and average's coverage."""
    if row is None or metric not in row.mean:
        return "-"
    text = f"{row.mean[metric]:.2f}"
    if len(row.seeds) > 1:
        text += f" ± {row.std[metric]:.2f}"
    if row.chosen_on_test:
        text += f" {CHOSEN}"
    return f"{text} ({row.coverage})" if row.missing else text


def chosen_on_test(rows: Iterable[Row]) -> list[str]:
    """Return a line that names the methods whose results have the mark; none where none has."""
    lines = dict.fromkeys(str(row.line) for row in rows if row.chosen_on_test)
    said = f"{CHOSEN} the test images chose the epoch (TEST.FINAL_MODEL best_test)"
    return [f"{said}: {', '.join(lines)}"] if lines else []


def gaps(rows: Iterable[Row]) -> list[str]:
    """Return a line for every row that lacks something, and what the mark of results says.

    An average that lacks data sets names them or the others; a data set that lacks images for the
    shots says how many there were.
    """
    rows = list(rows)
    lines = chosen_on_test(rows)
    for row in rows:
        if row.few_images:
            lines.append(
                f"{row.method}: {row.dataset} has fewer training images, {row.few_images} per class"
            )
        if row.missing:
            few = len(row.missing) > len(row.covered)
            names = ", ".join(row.covered if few else row.missing)
            lines.append(
                f"{row.line}: {row.dataset}: {row.coverage}, {'only' if few else 'without'} {names}"
            )
    return lines


def shown_metrics(protocol: str, rows: Iterable[Row]) -> list[str]:
    """Return the metrics of a protocol's rows, in order: those that a row has."""
    table = TABLES[protocol]
    known = (*table.metrics, *(("H",) if has_halves(protocol) else ()), *table.beside)
    found = {metric for row in rows for metric in row.mean}
    return [metric for metric in known if metric in found or metric not in table.beside]


def metrics_tables(
    protocol: str, rows: list[Row], keyword: str, columns: Sequence[Column]
) -> Iterable[Table]:
    """Yield one table per data set and per average, of base, new and H, or of all classes.

    Args:
        protocol: key of TITLES.
        rows: of the protocol.
        keyword: the metric, for the titles.
        columns: further ones.
    """
    for dataset in dict.fromkeys(row.dataset for row in rows):
        mine = [row for row in rows if row.dataset == dataset]
        notes, metrics = gaps(mine), shown_metrics(protocol, mine)
        lines = [
            [row.method.trainer, row.method.config]
            + [str(shots_name(row.method.shots)), str(len(row.seeds))]
            + cells(columns, runs_behind(row, rows))
            + [cell(row, metric) for metric in metrics]
            for row in mine
        ]
        notes += blanks(columns, ((str(row.method), runs_behind(row, rows)) for row in mine))
        title = f"{TITLES[protocol]}, {dataset} ({keyword}, {unit(keyword)})"
        header = ["trainer", "config", "shots", "seeds", *(c.head for c in columns), *metrics]
        ranked = range(len(header) - len(metrics), len(header))
        yield Table(title, header, lines, 2, notes, ranked, keyword in LOWER, (1, 2, 3))


def column_order(rows: Iterable[Row]) -> list[str]:
    """Return the columns of an accuracy table: source, data sets, averages."""
    rows = list(rows)
    singles = {row.dataset for row in rows if not row.covered}
    sources = {row.method.source for row in rows} & singles
    averages = dict.fromkeys(row.dataset for row in rows if row.covered)
    return in_order(sources) + in_order(singles - sources) + list(averages)


def accuracy_tables(
    protocol: str, rows: list[Row], keyword: str, turn: bool, columns: Sequence[Column]
) -> Iterable[Table]:
    """Yield one table per source and number of shots; zero-shot methods stand in each.

    Args:
        protocol: key of TITLES.
        rows: of the protocol.
        keyword: the metric, for the titles.
        turn: whether a table that would be too wide has a line per data set.
        columns: further ones; of all data sets of a line together.
    """
    for source in sorted({row.method.source for row in rows}):
        of_source = [row for row in rows if row.method.source == source]
        for shots in sorted({row.method.shots for row in of_source} - {0}) or [0]:
            chosen = [row for row in of_source if row.method.shots in (0, shots)]
            title = TITLES[protocol]
            if source:
                title += f" from {source}"
            title += f", {shots_phrase(shots)} ({keyword}, {unit(keyword)})"
            datasets = column_order(chosen)
            names = [f"{d} (source)" if d == source else d for d in datasets]
            by_line = {
                line: {row.dataset: row for row in chosen if row.line == line}
                for line in sorted({row.line for row in chosen})
            }
            behind = {
                line: [run for row in mine.values() for run in row.read]
                for line, mine in by_line.items()
            }
            body = [
                [line.trainer, line.config, listing({len(row.seeds) for row in mine.values()})]
                + cells(columns, behind[line])
                + [cell(mine.get(dataset), "accuracy") for dataset in datasets]
                for line, mine in by_line.items()
            ]
            header = ["trainer", "config", "seeds", *(c.head for c in columns), *names]
            notes = gaps(chosen) + blanks(
                columns, ((str(line), runs) for line, runs in behind.items())
            )
            ranked = range(len(header) - len(names), len(header))
            table = Table(title, header, body, 2, notes, ranked, keyword in LOWER, (1, 2))
            if turn and table.width() > MAX_WIDTH:
                table = min(transposed(table), table, key=Table.width)
            yield table


def transposed(table: Table) -> Table:
    """Return an accuracy table with a line per data set and a column per method."""
    trainers = [line[0] for line in table.lines]
    header = ["data set"]
    settings: dict[str, list[str]] = {}
    for trainer, config, seeds, *_ in table.lines:
        name = trainer if trainers.count(trainer) == 1 else f"{trainer} {config}"
        header.append(name)
        setting = f"config {config}, {seeds} seed{'' if seeds == '1' else 's'}"
        settings.setdefault(setting, []).append(name)
    notes = [f"{', '.join(names)}: {setting}" for setting, names in settings.items()]
    body = [
        [name, *cells]
        for name, *cells in zip(table.header[3:], *(line[3:] for line in table.lines), strict=True)
    ]
    return Table(table.title, header, body, 1, notes + table.notes)


def render_tables(
    rows: list[Row],
    style: str,
    keyword: str,
    columns: Sequence[Column] = (),
    differences: Differences | None = None,
) -> str:
    """Return all tables with their titles.

    Args:
        rows: of all protocols.
        style: github or latex; latex always has the papers' line per method.
        keyword: the metric, for the titles.
        columns: further ones.
        differences: from a baseline, tables of their own behind those of their protocol.
    """
    tables: list[Table] = []
    for protocol in TITLES:
        chosen = [row for row in rows if row.protocol == protocol]
        if METRICS[protocol] != ("accuracy",):
            tables += metrics_tables(protocol, chosen, keyword, columns)
        else:
            tables += accuracy_tables(protocol, chosen, keyword, style != "latex", columns)
        if differences is not None:
            tables += differences.tables(protocol)
    return "\n".join(table.render(style) for table in tables)


def records(
    rows: list[Row], columns: Sequence[Column] = (), differences: Differences | None = None
) -> list[dict[str, Any]]:
    """Return the rows as flat mappings, numbers in percent.

    They have four decimals. Where all runs have records they are not rounded, and there are more
    columns.

    Args:
        rows: of all protocols.
        columns: further ones.
        differences: from a baseline.
    """
    result = []
    for row in rows:
        record: dict[str, Any] = {"protocol": row.protocol, "dataset": row.dataset}
        if row.method.source:
            record["source"] = row.method.source
        record |= {"trainer": row.method.trainer, "config": row.method.config}
        record |= {"shots": shots_name(row.method.shots), "seeds": len(row.seeds)}
        if row.backbone:
            record["backbone"] = row.backbone
        if row.parameters is not None:
            record["parameters"] = row.parameters
        if row.few_images:
            record["images_per_class"] = row.few_images
        if row.covered:
            record |= {"averaged": row.coverage, "missing": " ".join(row.missing)}
        if row.chosen_on_test:
            record["chosen_on"] = "test images"
        for metric, value in row.mean.items():
            record[metric] = value if row.exact else round(value, 4)
            if metric in row.std:
                std = row.std[metric]
                record[f"{metric}_std"] = std if row.exact else round(std, 4)
        if row.exact:
            record |= columns_of_records(row)
        if columns:
            mine = [one for one in rows if one.protocol == row.protocol]
            record |= values(columns, runs_behind(row, mine))
        if differences is not None:
            record |= differences.columns(row)
        result.append(record)
    return result


def columns_of_records(row: Row) -> dict[str, Any]:
    """Return what records add to a row: the value of each seed, device and time."""
    found: dict[str, Any] = {
        f"{metric}_by_seed": " ".join(f"{seed}={value}" for seed, value in sorted(values.items()))
        for metric, values in row.by_seed.items()
    }
    read = [result.record for result in row.read if result.record is not None]
    devices = {record["device"]["name"] for record in read}
    if devices:
        found["device"] = ", ".join(sorted(devices))
    seconds = [record["seconds"]["training"] for record in read]
    if seconds := [number for number in seconds if number is not None]:
        found["training_seconds"] = fmean(seconds)
    return found


def print_records(flat: list[dict], style: str) -> None:
    """Print mappings as csv, with a column for every key of any of them, or as json."""
    if style == "json":
        print(json.dumps(flat, indent=2))
        return
    columns = list(dict.fromkeys(key for record in flat for key in record))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def print_rows(
    rows: list[Row],
    style: str,
    keyword: str,
    columns: Sequence[Column] = (),
    differences: Differences | None = None,
) -> None:
    """Print the rows as github or latex tables, csv or json.

    Args:
        rows: of all protocols.
        style: github, latex, csv or json.
        keyword: the metric, for the titles.
        columns: further ones.
        differences: from a baseline.
    """
    if style in ("csv", "json"):
        print_records(records(rows, columns, differences), style)
    else:
        print(render_tables(rows, style, keyword, columns, differences), end="")
