"""Paired differences from a baseline method, with confidence intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from support.hints import nearest
from support.words import counted

from .rows import Row, harmonic, in_order
from .runs import TITLES, Method, has_halves, shots_name
from .tables import Table, shown_metrics

#: of the intervals
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, ours minus the baseline's, in the unit of the metric.

    ``low`` and ``high`` are the ends of its 95% interval, None for a single pair; ``pairs`` is the
    number of pairs, and ``unit`` what each is of, a seed or a data set.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    unit: str

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval holds 0; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high

    @property
    def size(self) -> str:
        """The number of pairs with what they are of: ``3 seeds``."""
        return counted(self.pairs, self.unit)

    @property
    def interval(self) -> str:
        """The ends of the interval in words; a dash without."""
        return "-" if self.low is None else f"{self.low:+.2f} to {self.high:+.2f}"

    @property
    def verdict(self) -> str:
        """What the interval says: ``within noise``, ``beyond noise``, or ``one pair``."""
        if self.within_noise is None:
            return "one pair"
        return "within noise" if self.within_noise else "beyond noise"


def paired(differences: Sequence[float], unit: str) -> Difference:
    """Return the mean of differences with its interval, that of Student's t.

    Args:
        differences: one of each pair.
        unit: what each pair is of.
    """
    mean, pairs = fmean(differences), len(differences)
    if pairs == 1:
        return Difference(mean, None, None, pairs, unit)
    if len(set(differences)) == 1:  # no spread, of which scipy makes no interval
        return Difference(mean, mean, mean, pairs, unit)
    from scipy.stats import ttest_1samp

    low, high = ttest_1samp(differences, 0).confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), pairs, unit)


def by_seed(row: Row, metric: str) -> dict[int, float]:
    """Return the values of a row's seeds; H is that of each seed's base and new."""
    if metric == "H" and has_halves(row.protocol):
        base, new = (row.by_seed.get(half, {}) for half in ("base", "new"))
        return {seed: harmonic(base[seed], new[seed]) for seed in base.keys() & new.keys()}
    return row.by_seed.get(metric, {})


def seed_differences(row: Row, baseline: Row, metric: str) -> list[float]:
    """Return the differences of two rows of a data set over the seeds that both have.

    A zero-shot model is the same for every seed, and is paired with each of the other's. Two of
    them make one pair.
    """
    ours, theirs = by_seed(row, metric), by_seed(baseline, metric)
    if not ours or not theirs:
        return []
    fixed = [one.zero_shot for one in (row, baseline)]
    if all(fixed):
        return [fmean(ours.values()) - fmean(theirs.values())]
    if fixed[0]:
        ours = dict.fromkeys(theirs, fmean(ours.values()))
    if fixed[1]:
        theirs = dict.fromkeys(ours, fmean(theirs.values()))
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


@dataclass(frozen=True)
class Differences:
    """Differences of rows from a baseline.

    Args:
        baseline: its name.
        rows: of all tables.
        found: id of a row -> metric -> difference.
    """

    baseline: str
    rows: Sequence[Row]
    found: Mapping[int, Mapping[str, Difference]]

    def tables(self, protocol: str) -> Iterable[Table]:
        """Yield a protocol's tables, one per source.

        Args:
            protocol: key of TITLES.
        """
        header = ["trainer", "config", "shots", "data set", "metric", "pairs", "difference"]
        header += ["95% interval", "verdict"]
        for title, found in self.of(protocol):
            lines = [
                [row.line.trainer, row.line.config, str(shots_name(row.method.shots))]
                + [row.dataset, metric, one.size, f"{one.mean:+.2f}", one.interval, one.verdict]
                for row, metric, one in found
            ]
            yield Table(title, header, lines, 6, settings=(1, 2, 3, 4, 5))

    def of(self, protocol: str) -> Iterable[tuple[str, list[tuple[Row, str, Difference]]]]:
        """Yield a title and the differences below it, each with row and metric, one per source.

        Args:
            protocol: key of TITLES.
        """
        mine = [row for row in self.rows if row.protocol == protocol]
        for source in sorted({row.method.source for row in mine}):
            found = [
                (row, metric, one)
                for row in mine
                if row.method.source == source
                for metric, one in self.found.get(id(row), {}).items()
            ]
            if found:
                from_ = f" from {source}" if source else ""
                yield f"{TITLES[protocol]}{from_}: difference from {self.baseline}", found

    def columns(self, row: Row) -> dict[str, Any]:
        """Return what csv and json have of a row's differences."""
        columns: dict[str, Any] = {}
        for metric, one in self.found.get(id(row), {}).items():
            columns["baseline"] = self.baseline
            for end, value in {"": one.mean, "_low": one.low, "_high": one.high}.items():
                if value is not None:
                    columns[f"{metric}_difference{end}"] = value if row.exact else round(value, 4)
            columns[f"{metric}_difference_pairs"] = one.size
            columns[f"{metric}_difference_verdict"] = one.verdict
        return columns


class Baseline:
    """A method that others are compared with.

    Args:
        name: its trainer, in any case, or ``trainer/config`` where it has several configurations.
        rows: of all tables.

    Raises:
        ValueError: there are no results of it, or in a table there are several configurations.
    """

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        trainer, _, config = name.partition("/")
        of_trainer = [row for row in rows if row.method.trainer.lower() == trainer.lower()]
        if not of_trainer:
            names = sorted({row.method.trainer for row in rows})
            hint = nearest(trainer, names)
            raise ValueError(
                f"--baseline: no results of {trainer!r}; there are: {', '.join(names)}{hint}"
            )
        self.name = "/".join(filter(None, (of_trainer[0].method.trainer, config)))
        self.rows = [r for r in of_trainer if config in ("", r.method.config, r.line.config)]
        if not self.rows:
            configs = sorted({row.method.config for row in of_trainer if not row.covered})
            raise ValueError(
                f"--baseline: {of_trainer[0].method.trainer} has no configuration {config!r}; "
                f"there are: {', '.join(configs)}{nearest(config, configs)}"
            )
        self._found: dict[tuple, list[Row]] = defaultdict(list)
        for row in self.rows:
            self._found[row.protocol, row.dataset, row.method.source].append(row)
        self._check()

    def _check(self) -> None:
        for (protocol, dataset, _), rows in self._found.items():
            for shots in {row.method.shots for row in rows}:
                lines = sorted({row.line for row in rows if row.method.shots == shots})
                if len(lines) > 1:
                    named = ", ".join(f"{line.trainer}/{line.config}" for line in lines)
                    raise ValueError(
                        f"--baseline: {self.name} has several configurations ({TITLES[protocol]}, "
                        f"{dataset}): name one of {named}"
                    )

    def _beside(self, row: Row) -> list[Row]:
        """Return the baseline's rows of another's data set, of every number of shots."""
        return self._found.get((row.protocol, row.dataset, row.method.source), [])

    def row_for(self, row: Row) -> Row | None:
        """Return the baseline's row beside another: of as many shots, or zero-shot.

        A zero-shot row stands beside every number of shots, so there the baseline's only one is
        taken; of several none is.
        """
        there = self._beside(row)
        same = [one for one in there if one.method.shots == row.method.shots]
        if not same:
            same = [one for one in there if one.zero_shot]
        if not same and row.zero_shot and len(there) == 1:
            same = there
        return same[0] if same else None

    def _why_not(self, row: Row) -> str:
        """Return why a row of a data set has no difference."""
        shots = sorted(one.method.shots for one in self._beside(row))
        if row.zero_shot and len(shots) > 1:
            return f"has several numbers of shots ({', '.join(str(shots_name(n)) for n in shots)})"
        return "has no seed in common, or no result,"

    def differences(self, rows: Sequence[Row], note: Callable[[str], None]) -> Differences:
        """Return the differences of all other rows.

        Those of a data set are over seeds; those of an average over data sets, each with the mean
        of its seeds' differences.

        Args:
            rows: of all tables.
            note: called with a line for every method that has no difference somewhere.
        """
        own = set(map(id, self.rows))
        others = [row for row in rows if id(row) not in own]
        found: dict[int, dict[str, Difference]] = {}
        lacking: dict[tuple[str, Method, str], list[str]] = defaultdict(list)
        for row in others:
            metrics = shown_metrics(row.protocol, [row])
            baseline = self.row_for(row)
            if row.covered:
                found[id(row)] = self._of_average(row, metrics, others, found)
                continue
            each = {
                metric: values
                for metric in metrics
                if baseline and (values := seed_differences(row, baseline, metric))
            }
            found[id(row)] = {metric: paired(each[metric], "seed") for metric in each}
            if not each:
                lacking[row.protocol, row.line, self._why_not(row)].append(row.dataset)
        for (protocol, line, why), datasets in lacking.items():
            note(
                f"no difference: {TITLES[protocol]}, {line}: {self.name} {why} on "
                f"{', '.join(in_order(datasets))}"
            )
        return Differences(self.name, rows, found)

    def _of_average(
        self,
        row: Row,
        metrics: Iterable[str],
        others: Sequence[Row],
        found: Mapping[int, Mapping[str, Difference]],
    ) -> dict[str, Difference]:
        parts = [
            found[id(part)]
            for part in others
            if (part.protocol, part.line) == (row.protocol, row.line)
            and part.dataset in row.covered
            and self._averages(row, part.dataset)
        ]
        result = {}
        for metric in metrics:
            means = [part[metric].mean for part in parts if metric in part]
            if len(means) > 1:
                result[metric] = paired(means, "data set")
        return result

    def _averages(self, row: Row, dataset: str) -> bool:
        """Return whether the baseline's average beside a row is of a data set, too."""
        average = self.row_for(row)
        return average is not None and dataset in average.covered
