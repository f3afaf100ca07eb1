"""Rows as tables, CSV and JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable

from tabulate import tabulate

from .rows import Row, listing
from .runs import LAYOUTS, TITLES


def cell(row: Row | None, metric: str) -> str:
    """Return a mean with its spread, which one seed does not have."""
    if row is None or metric not in row.mean:
        return "-"
    if len(row.seeds) < 2:
        return f"{row.mean[metric]:.2f}"
    return f"{row.mean[metric]:.2f} ± {row.std[metric]:.2f}"


def base2new_tables(rows: list[Row]) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """Yield title, header and lines of one table per data set and per average."""
    header = ["trainer", "config", "shots", "seeds", "base", "new", "H"]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        lines = [
            [row.method.trainer, row.method.config, str(row.method.shots), str(len(row.seeds))]
            + [cell(row, metric) for metric in ("base", "new", "H")]
            for row in rows
            if row.dataset == dataset
        ]
        yield f"{TITLES['base2new']}, {dataset}", header, lines


def accuracy_tables(
    protocol: str, rows: list[Row]
) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """Yield title, header and lines of one table per number of shots: a column per data set."""
    for shots in sorted({row.method.shots for row in rows}):
        chosen = [row for row in rows if row.method.shots == shots]
        columns = list(dict.fromkeys(row.dataset for row in chosen))
        lines = []
        for method in sorted({row.method for row in chosen}):
            mine = {row.dataset: row for row in chosen if row.method == method}
            lines.append(
                [method.trainer, method.config, listing({len(row.seeds) for row in mine.values()})]
                + [cell(mine.get(column), "accuracy") for column in columns]
            )
        title = f"{TITLES[protocol]}, {shots} shot{'s' if shots > 1 else ''}"
        yield title, ["trainer", "config", "seeds", *columns], lines


def render_tables(rows: list[Row], style: str, keyword: str) -> str:
    """Return all tables with their titles.

    Args:
        rows: of all protocols.
        style: github or latex.
        keyword: the metric, for the titles.
    """
    texts = []
    for protocol in LAYOUTS:
        chosen = [row for row in rows if row.protocol == protocol]
        tables = (
            base2new_tables(chosen) if protocol == "base2new" else accuracy_tables(protocol, chosen)
        )
        for title, header, lines in tables:
            table = tabulate(
                lines,
                header,
                tablefmt=style,
                disable_numparse=True,
                colalign=["left", "left"] + ["right"] * (len(header) - 2),
            )
            mark = "%" if style == "latex" else "###"
            texts.append(f"{mark} {title} ({keyword}, %)\n\n{table}\n")
    return "\n".join(texts)


def records(rows: list[Row]) -> list[dict]:
    """Return the rows as flat mappings, numbers in percent with four decimals."""
    result = []
    for row in rows:
        record = {"protocol": row.protocol, "dataset": row.dataset}
        record |= {"trainer": row.method.trainer, "config": row.method.config}
        record |= {"shots": row.method.shots, "seeds": len(row.seeds)}
        for metric, value in row.mean.items():
            record[metric] = round(value, 4)
            if metric in row.std:
                record[f"{metric}_std"] = round(row.std[metric], 4)
        result.append(record)
    return result


def print_rows(rows: list[Row], style: str, keyword: str) -> None:
    """Print the rows as github or latex tables, csv or json."""
    if style == "json":
        print(json.dumps(records(rows), indent=2))
    elif style == "csv":
        flat = records(rows)
        columns = list(dict.fromkeys(key for record in flat for key in record))
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    else:
        print(render_tables(rows, style, keyword), end="")
