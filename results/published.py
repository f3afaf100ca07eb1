"""Published figures, and ours beside them where both are of the same thing."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .rows import Row, in_order
from .runs import ELEVEN, TITLES, VARIANTS, shots_name
from .tables import Table, cell, print_records

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "published" / "published_results.csv"

# What the dataset "average" of a published figure is over.
AVERAGED = {
    "base2new": set(ELEVEN),
    "fewshot": set(ELEVEN),
    "cross": set(ELEVEN) - {"imagenet"},
    "dg": set(VARIANTS),
}


@dataclass(frozen=True)
class Figure:
    """A published number in percent, or the spread of one.

    ``trainer`` is the registry name it belongs to, empty for methods that are not here; ``dataset``
    may be ``average``; ``shots`` is None where it does not matter; ``settings`` are config values
    that a run must show to be of the published method; ``seed`` is empty for a mean over seeds.
    """

    method: str
    trainer: str
    protocol: str
    dataset: str
    shots: int | None
    backbone: str
    settings: tuple[tuple[str, str], ...]
    metric: str
    value: float
    seed: str
    epochs: str
    source: str
    note: str


def read_published(path: Path = PUBLISHED) -> list[Figure]:
    """Return all published figures of the data file.

    Args:
        path: CSV with the columns of ``Figure``; settings as ``KEY=VALUE;KEY=VALUE``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a line lacks a value or its source, naming the line.
    """
    figures = []
    with open(path, encoding="utf-8", newline="") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            settings = [pair.partition("=") for pair in line["settings"].split(";") if pair]
            try:
                line["value"] = float(line["value"])
                line["shots"] = int(line["shots"]) if line["shots"] else None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if not line["source"] or line["protocol"] not in TITLES:
                raise ValueError(
                    f"{path}, line {number}: needs a source, and a protocol of {', '.join(TITLES)}"
                )
            line["settings"] = tuple((key, value) for key, _, value in settings)
            figures.append(Figure(**line))
    return figures


def mismatch(row: Row, figure: Figure) -> tuple[int, str]:
    """Return how many checks a row passes, and the first that says it is of something else.

    Args:
        row: of the figure's trainer and protocol.
        figure: a published one.

    Returns:
        The number of passed checks and the reason; an empty reason when both can be compared.
    """
    checks = [
        (
            row.backbone == figure.backbone,
            f"backbone {row.backbone or 'unknown'}, published {figure.backbone}",
        ),
        (
            figure.shots in (None, row.method.shots),
            f"{shots_name(row.method.shots)} shots, published {figure.shots}",
        ),
        (
            row.method.source in ("", "imagenet"),
            f"trained on {row.method.source}, published imagenet",
        ),
    ]
    for key, value in figure.settings:
        ours = ", ".join(sorted(row.facts.get(key, ())))
        shown = (ours or "empty") if key in row.facts else "not in the logs"
        same = row.facts.get(key) == {value}
        checks.append((same, f"{key} is {shown}, published {value or 'empty'}"))
    if figure.dataset != "average":
        checks.append((row.dataset == figure.dataset, "no published figure of this data set"))
    elif not row.covered:
        checks.append((False, "no published figure of this data set"))
    elif not AVERAGED[row.protocol].issuperset(row.covered):
        checks.append((False, "no published figure of this average"))
    else:
        checks.append((not row.missing, f"an average of {row.coverage} data sets only"))
    for passed, (fits, reason) in enumerate(checks):
        if not fits:
            return passed, reason
    return len(checks), ""


@dataclass
class Comparison:
    """A metric of a row beside a published figure; without one, ``reason`` says why."""

    row: Row
    metric: str
    figure: Figure | None
    reason: str = ""

    @property
    def difference(self) -> float:
        """Ours minus the published one, in points."""
        return self.row.mean[self.metric] - self.figure.value


def compare(rows: Iterable[Row], figures: list[Figure]) -> list[Comparison]:
    """Return every metric of every row beside all published figures of the same thing.

    Args:
        rows: ours.
        figures: the published ones; those of single seeds are not compared.
    """
    comparisons = []
    for row in rows:
        ours = [
            figure
            for figure in figures
            if (figure.trainer, figure.protocol, figure.seed)
            == (row.method.trainer, row.protocol, "")
        ]
        for metric in row.mean:
            tried = [(*mismatch(row, f), f) for f in ours if f.metric == metric]
            matches = [figure for _, reason, figure in tried if not reason]
            comparisons += [Comparison(row, metric, figure) for figure in matches]
            if not matches:
                # The reason of the figure that comes nearest.
                nearest = max(tried, key=lambda t: t[0], default=(0, "no published figure"))
                comparisons.append(Comparison(row, metric, None, nearest[1]))
    return comparisons


def comparison_table(protocol: str, comparisons: list[Comparison]) -> Table:
    """Return the comparisons of a protocol as a table, sources and what is left out below it.

    Args:
        protocol: key of TITLES.
        comparisons: of this protocol.
    """
    sources: dict[str, int] = {}
    lines = []
    # reason -> method -> data sets; those that have it for a metric only are in the table.
    left_out: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    found = {id(c.row) for c in comparisons if c.figure}
    for c in comparisons:
        if c.figure is None:
            if id(c.row) not in found:
                left_out[c.reason][f"{c.row.line.trainer} {c.row.line.config}"].add(c.row.dataset)
            continue
        details = [c.figure.source]
        if c.figure.epochs:
            details.append(f"{c.figure.epochs} epochs")
        if c.figure.note:
            details.append(c.figure.note)
        number = sources.setdefault("; ".join(details), len(sources) + 1)
        lines.append(
            [c.row.line.trainer, c.row.line.config, c.row.dataset, c.figure.method, c.metric]
            + [cell(c.row, c.metric), f"{c.figure.value:.2f}", f"{c.difference:+.2f}"]
            + [f"[{number}]"]
        )
    notes = [f"[{number}] {source}" for source, number in sources.items()]
    for reason, methods in left_out.items():
        several = {
            method: f"{len(names)} rows" if len(names) > 2 else "; ".join(in_order(names))
            for method, names in methods.items()
        }
        listed = ", ".join(f"{method} ({names})" for method, names in several.items())
        notes.append(f"not compared, {reason}: {listed}")
    header = ["trainer", "config", "data set", "published as", "metric"]
    header += ["ours", "published", "difference", "source"]
    return Table(f"{TITLES[protocol]}, published figures (%)", header, lines, 5, notes)


def comparison_records(comparisons: list[Comparison]) -> list[dict]:
    """Return the comparisons as flat mappings, numbers in percent with four decimals."""
    result = []
    for c in comparisons:
        method = c.row.method
        record = {"protocol": c.row.protocol, "dataset": c.row.dataset, "trainer": method.trainer}
        record |= {"config": method.config, "shots": shots_name(method.shots)}
        record |= {"seeds": len(c.row.seeds)}
        record |= {"backbone": c.row.backbone, "metric": c.metric}
        record["ours"] = round(c.row.mean[c.metric], 4)
        if c.figure:
            record |= {"published": c.figure.value, "difference": round(c.difference, 4)}
            record |= {"published_as": c.figure.method, "source": c.figure.source}
        else:
            record["not_compared"] = c.reason
        result.append(record)
    return result


def print_comparison(rows: list[Row], style: str) -> None:
    """Print ours beside the published figures as github or latex tables, csv or json."""
    comparisons = compare(rows, read_published())
    if style in ("csv", "json"):
        print_records(comparison_records(comparisons), style)
        return
    tables = []
    for protocol in TITLES:
        mine = [c for c in comparisons if c.row.protocol == protocol]
        if mine:
            tables.append(comparison_table(protocol, mine).render(style))
    print("\n".join(tables), end="")
