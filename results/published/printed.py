"""The papers' tables as they are printed, without any run of ours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict

from support.words import counted

from ..rows import in_order
from ..tables import Table, print_records
from .figures import AVERAGE, PROTOCOLS, Figure, read_published


def line_of(figure: Figure) -> str:
    """Return the name of the line that a figure stands in."""
    return f"{figure.method}, seed {figure.seed}" if figure.seed else figure.method


def column_of(figure: Figure) -> str:
    """Return the heading of a figure's data set or average."""
    if figure.dataset == AVERAGE:
        return f"average ({len(figure.averaged)})"
    if figure.protocol == "dg" and figure.dataset == "imagenet":
        return "imagenet (source)"
    return figure.dataset


def notes_of(columns: dict[str, list[Figure]]) -> list[str]:
    """Return what the data says about the figures of a table, alike ones together.

    Args:
        columns: heading -> figures.
    """
    told: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    counts = Counter(line_of(figure) for figures in columns.values() for figure in figures)
    for heading, figures in columns.items():
        for figure in figures:
            epochs = [f"{figure.epochs} epochs"] if figure.epochs else []
            for text in epochs + [part for part in figure.note.split("; ") if part]:
                told[text][line_of(figure)].append(heading)
    notes = []
    for text, lines in told.items():
        places = [
            line if len(headings) == counts[line] else f"{line} ({', '.join(headings)})"
            for line, headings in lines.items()
        ]
        notes.append(f"{'all' if places == [*counts] else '; '.join(places)}: {text}")
    return notes


def make_table(title: str, columns: dict[str, list[Figure]]) -> Table:
    """Return a table with a line per method.

    Args:
        title: of the table.
        columns: heading -> figures, one per line.
    """
    cells = {
        heading: {line_of(figure): figure.value for figure in figures}
        for heading, figures in columns.items()
    }
    names = dict.fromkeys(line_of(figure) for figures in columns.values() for figure in figures)
    lines = [[name, *(cells[heading].get(name, "-") for heading in columns)] for name in names]
    return Table(title, ["method", *columns], lines, 1, notes_of(columns))


def tables_of(named: str, figures: list[Figure]) -> Iterable[Table]:
    """Yield a table per metric, or where there is one data set or average only, a column each.

    Args:
        named: what the titles begin with.
        figures: of one source, backbone and number of shots.
    """
    places = {figure.dataset: column_of(figure) for figure in figures}
    headings = [places[d] for d in in_order(places.keys() - {AVERAGE})]
    if figures[0].protocol == "dg":
        headings.sort(key=lambda heading: not heading.endswith("(source)"))
    if AVERAGE in places:
        headings.append(places[AVERAGE])
    metrics = dict.fromkeys(figure.metric for figure in figures)
    if len(headings) == 1:
        columns = {metric: [f for f in figures if f.metric == metric] for metric in metrics}
        yield make_table(f"{named}, {headings[0]} (%)", columns)
        return
    for metric in metrics:
        mine = [figure for figure in figures if figure.metric == metric]
        columns = {h: [f for f in mine if column_of(f) == h] for h in headings}
        yield make_table(f"{named} ({metric}, %)", columns)


def published_tables(figures: list[Figure]) -> Iterable[Table]:
    """Yield the published tables: per protocol, source, backbone, number of shots and metric.

    Zero-shot figures stand in the tables of all shots of their source.

    Args:
        figures: the published ones.
    """
    sources: dict[tuple[str, str, str], list[Figure]] = defaultdict(list)
    for figure in figures:
        for source in figure.source.split("; "):
            sources[figure.protocol, source, figure.backbone].append(figure)
    for protocol, title in PROTOCOLS.items():
        for (of, source, backbone), mine in sources.items():
            if of != protocol:
                continue
            named = f"{title}, {source}, {backbone}"
            for shots in sorted({f.shots for f in mine if f.shots}, reverse=True):
                chosen = [figure for figure in mine if figure.shots in (None, shots)]
                yield from tables_of(f"{named}, {counted(shots, 'shot')}", chosen)
            if all(figure.shots is None for figure in mine):
                yield from tables_of(named, mine)


def print_published(style: str) -> None:
    """Print all published figures as github or latex tables, csv or json."""
    figures = read_published()
    if style in ("csv", "json"):
        flat = []
        for figure in figures:
            settings = ";".join(f"{key}={value}" for key, value in figure.settings)
            record = asdict(figure) | {"value": figure.percent, "settings": settings}
            flat.append(record | {"without": " ".join(figure.without)})
        print_records(flat, style)
    else:
        print("\n".join(table.render(style) for table in published_tables(figures)), end="")
