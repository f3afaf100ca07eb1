"""Which published figures our results can be compared with, or why with none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..rows import Row, average_row
from ..runs import METRICS, shots_name
from .figures import AVERAGE, Figure

# What is checked, in this order; where nothing fits, the figure that fails latest is the nearest.
BACKBONE, SHOTS, SOURCE, SETTING, DATASET, COMPLETE = range(6)


def method_differences(row: Row, figure: Figure) -> list[tuple[int, str]]:
    """Return why a row is not of the published method: what differs and how; empty if it is.

    Args:
        row: of the figure's trainer.
        figure: a published one, of whichever data set.
    """
    reasons = []
    if row.backbone != figure.backbone:
        ours = row.backbone or "unknown"
        reasons.append((BACKBONE, f"backbone {ours}, published {figure.backbone}"))
    if figure.shots not in (None, row.method.shots):
        plural = "" if row.method.shots == 1 else "s"
        number = shots_name(row.method.shots)
        reasons.append((SHOTS, f"{number} shot{plural}, published {figure.shots}"))
    if row.method.source not in ("", "imagenet"):
        reasons.append((SOURCE, f"trained on {row.method.source}, published imagenet"))
    for key, values in figure.settings:
        found = row.facts.get(key)
        if found is None or len(found) > 1 or not found <= set(values.split("|")):
            shown = "not in the logs" if found is None else ", ".join(sorted(found)) or "empty"
            wanted = values.replace("|", " or ") or "empty"
            reasons.append((SETTING, f"{key} is {shown}, published {wanted}"))
    return reasons


def data_set_differences(row: Row, figure: Figure) -> list[tuple[int, str]]:
    """Return why a row is not of a figure's data set or average, in the same form."""
    if not row.covered:
        if row.dataset == figure.dataset:
            return []
        return [(DATASET, "no published figure of this data set")]
    if figure.dataset != AVERAGE or {*row.covered, *row.missing} != set(figure.averaged):
        return [(DATASET, "no published figure of this average")]
    if row.missing:
        return [(COMPLETE, f"an average of {row.coverage} data sets only")]
    return []


@dataclass
class Comparison:
    """A metric of a row beside a published figure.

    Without one, ``reason`` says why; ``incomplete`` is whether data sets are all that lacks.
    """

    row: Row
    metric: str
    figure: Figure | None
    reason: str = ""
    incomplete: bool = False

    @property
    def protocol(self) -> str:
        """Protocol of the figure, or else of the row."""
        return self.figure.protocol if self.figure else self.row.protocol

    @property
    def difference(self) -> float:
        """Ours minus the published one, in points."""
        if self.figure is None:
            raise ValueError(f"no published figure: {self.reason}")
        return self.row.mean[self.metric] - self.figure.percent

    @property
    def deviations(self) -> float | None:
        """The difference over our spread; None for one seed, or where all seeds agree."""
        spread = self.row.std.get(self.metric) if len(self.row.seeds) > 1 else None
        return self.difference / spread if spread else None


def compare_row(row: Row, figures: dict[tuple[str, str, str], list[Figure]]) -> list[Comparison]:
    """Return every metric of a row beside all published figures of the same thing.

    Args:
        row: ours.
        figures: trainer, protocol of the runs, metric -> published ones.
    """
    # Figures of all data sets ask for the same settings.
    checked: dict[tuple, list[tuple[int, str]]] = {}
    comparisons = []
    for metric in row.mean:
        tried = []
        for figure in figures.get((row.method.trainer, row.protocol, metric), ()):
            method = figure.backbone, figure.shots, figure.settings
            if method not in checked:
                checked[method] = method_differences(row, figure)
            tried.append((checked[method] + data_set_differences(row, figure), figure))
        matches = [figure for reasons, figure in tried if not reasons]
        comparisons += [Comparison(row, metric, figure) for figure in matches]
        if not matches:
            # The fewest reasons, and of two such figures the one that fails later.
            no_figure = [(BACKBONE, "no published figure")]
            nearest = min(
                (reasons for reasons, _ in tried),
                key=lambda reasons: (len(reasons), -reasons[0][0]),
                default=no_figure,
            )
            first = nearest[0][0]
            reason = "; ".join(text for kind, text in nearest if kind == first)
            comparisons.append(Comparison(row, metric, None, reason, first == COMPLETE))
    return comparisons


def partial_averages(rows: list[Row], figures: Iterable[Figure], ci95: bool) -> Iterable[Row]:
    """Yield our averages over those data sets that published averages over fewer are of.

    Args:
        rows: ours, of data sets.
        figures: the published ones.
        ci95: 95% intervals instead of standard deviations.
    """
    asked = {(f.trainer, f.runs, f.averaged): None for f in figures if f.trainer and f.without}
    for trainer, protocol, datasets in asked:
        lines: dict[Any, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            if (row.method.trainer, row.protocol) != (trainer, protocol) or row.covered:
                continue
            if row.dataset in datasets and row.mean.keys() >= set(METRICS[protocol]):
                lines[row.line][row.dataset] = row
        name = f"average over {len(datasets)} data sets"
        for line, mine in lines.items():
            if len(mine) > 1:
                yield average_row(protocol, name, list(datasets), line, mine, ci95)


def compare(rows: list[Row], figures: list[Figure], ci95: bool = False) -> list[Comparison]:
    """Return every metric of every row beside all published figures of the same thing.

    Args:
        rows: ours.
        figures: the published ones; those of single seeds are not compared.
        ci95: whether the rows' spreads are 95% intervals.
    """
    figures = [f for f in figures if f.trainer and not f.seed]
    index = defaultdict(list)
    for figure in figures:
        index[figure.trainer, figure.runs, figure.metric].append(figure)
    comparisons = [c for row in rows for c in compare_row(row, index)]
    for row in partial_averages(rows, figures, ci95):
        # These are there for the comparison only.
        comparisons += [c for c in compare_row(row, index) if c.figure or c.incomplete]
    return comparisons
