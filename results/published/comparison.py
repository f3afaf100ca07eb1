"""Our results beside the published figures, as tables, csv and json."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import Any

from ..rows import Row, in_order
from ..runs import shots_name
from ..tables import Table, cell, chosen_on_test, print_records
from .figures import PROTOCOLS, Figure, read_published
from .matching import Comparison, compare


def in_deviations(comparison: Comparison) -> str:
    """Return a cell with the difference over our spread, or why there is none."""
    if comparison.deviations is not None:
        return f"{comparison.deviations:+.1f}"
    return "one seed" if len(comparison.row.seeds) == 1 else "-"


def comparison_lines(comparisons: list[Comparison], sources: dict[str, int]) -> list[list[str]]:
    """Return a table's lines; figures of several tables that agree share one.

    Args:
        comparisons: those with a figure.
        sources: source and what else is to be said of a figure -> its number, which is added to.
    """
    lines = []
    for _, group in groupby(comparisons, key=lambda c: (id(c.row), c.metric)):
        same: dict[float, list[tuple[Comparison, Figure]]] = defaultdict(list)
        for c in group:
            if c.figure is not None:
                same[c.figure.percent].append((c, c.figure))
        for alike in same.values():
            first, published = alike[0]
            numbers = []
            for _, figure in alike:
                details = [figure.source]
                if figure.method != published.method:
                    details[0] += f", there {figure.method}"
                if figure.epochs:
                    details.append(f"{figure.epochs} epochs")
                if figure.note:
                    details.append(figure.note)
                numbers.append(sources.setdefault("; ".join(details), len(sources) + 1))
            row = first.row
            lines.append(
                [row.line.trainer, row.line.config, str(shots_name(row.method.shots)), row.dataset]
                + [published.method, first.metric, cell(row, first.metric), published.value]
                + [f"{first.difference:+.2f}", in_deviations(first)]
                + [" ".join(f"[{number}]" for number in numbers), str(len(row.seeds))]
            )
    return lines


def comparison_table(protocol: str, comparisons: list[Comparison], ci95: bool) -> Table:
    """Return the comparisons of a protocol as a table, sources and what is left out below it.

    Args:
        protocol: key of PROTOCOLS.
        comparisons: of all protocols.
        ci95: whether the spreads are 95% intervals.
    """
    sources: dict[str, int] = {}
    found = {id(c.row) for c in comparisons if c.figure}
    mine = [c for c in comparisons if c.protocol == protocol]
    lines = comparison_lines([c for c in mine if c.figure], sources)
    # reason -> method -> data sets; those that have it for a metric only are in the table.
    left_out: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for c in mine:
        if id(c.row) not in found:
            left_out[c.reason][f"{c.row.line.trainer} {c.row.line.config}"].add(c.row.dataset)
    notes = [f"[{number}] {source}" for source, number in sources.items()]
    notes += chosen_on_test(c.row for c in mine if c.figure)
    for reason, methods in left_out.items():
        several = {
            method: f"{len(names)} rows" if len(names) > 2 else "; ".join(in_order(names))
            for method, names in methods.items()
        }
        listed = ", ".join(f"{method} ({names})" for method, names in several.items())
        notes.append(f"not compared, {reason}: {listed}")
    header = ["trainer", "config", "shots", "data set", "published as", "metric", "ours"]
    header += [
        "published",
        "difference",
        f"in {'intervals' if ci95 else 'deviations'}",
        "source",
        "seeds",
    ]
    return Table(f"{PROTOCOLS[protocol]}, published figures (%)", header, lines, 6, notes)


def comparison_records(comparisons: list[Comparison]) -> list[dict]:
    """Return the comparisons as flat mappings, numbers in percent with four decimals."""
    result = []
    for c in comparisons:
        method = c.row.method
        record: dict[str, Any] = {"protocol": c.protocol, "dataset": c.row.dataset}
        record |= {"trainer": method.trainer}
        record |= {"config": method.config, "shots": shots_name(method.shots)}
        record |= {"seeds": len(c.row.seeds)}
        record |= {"backbone": c.row.backbone, "metric": c.metric}
        record["ours"] = round(c.row.mean[c.metric], 4)
        if c.metric in c.row.std:
            record["ours_std"] = round(c.row.std[c.metric], 4)
        if c.figure:
            record |= {"published": c.figure.percent, "difference": round(c.difference, 4)}
            if c.deviations is not None:
                record["difference_over_std"] = round(c.deviations, 4)
            record |= {"published_as": c.figure.method, "source": c.figure.source}
            if c.figure.note:
                record["note"] = c.figure.note
        else:
            record["not_compared"] = c.reason
        result.append(record)
    return result


def print_comparison(rows: list[Row], style: str, ci95: bool) -> None:
    """Print ours beside the published figures as github or latex tables, csv or json.

    Args:
        rows: ours.
        style: of the tables.
        ci95: whether the rows' spreads are 95% intervals.
    """
    comparisons = compare(rows, read_published(), ci95)
    if style in ("csv", "json"):
        print_records(comparison_records(comparisons), style)
        return
    tables = []
    for protocol in PROTOCOLS:
        if any(c.protocol == protocol for c in comparisons):
            tables.append(comparison_table(protocol, comparisons, ci95).render(style))
    print("\n".join(tables), end="")
