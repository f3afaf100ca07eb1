"""Means and spreads over seeds, H, and averages over data sets."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

from protocols import ELEVEN, GENERATED, VARIANTS

from .agreement import description, description_across_data_sets, leave_out
from .backbones import backbone_name
from .record import RunResult
from .runs import METRICS, TABLES, TITLES, Method, Runs, Scores, has_halves


def spread(values: list[float], ci95: bool) -> float:
    """Return the population standard deviation of values, or the half width of its 95% interval."""
    std = pstdev(values)
    return 1.96 * std / math.sqrt(len(values)) if ci95 else std


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two accuracies; 0 when both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


@dataclass
class Row:
    """Results of a method on a data set, or on average; accuracies and their spreads in percent.

    ``line`` is the method under which the row stands beside the method's other data sets: its
    configuration without the number of epochs where that differs between them. ``by_seed`` is
    metric -> seed -> percent, ``read`` what was read of these runs, ``repeats`` what was read of
    others with a result of theirs; ``exact`` is whether all have a record, so that nothing is
    rounded. An average has the data sets it is of in ``covered``
    and those it lacks in ``missing``; both are empty elsewhere.
    """

    protocol: str
    dataset: str
    method: Method
    line: Method
    seeds: list[int]
    mean: dict[str, float] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    facts: dict[str, set[str]] = field(default_factory=dict)
    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    read: list[RunResult] = field(default_factory=list)
    repeats: list[RunResult] = field(default_factory=list)
    exact: bool = False
    chosen_on_test: bool = False
    covered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def coverage(self) -> str:
        """How many data sets an average is of, out of how many; empty for a single data set."""
        if not self.covered:
            return ""
        return f"{len(self.covered)}/{len(self.covered) + len(self.missing)}"

    @property
    def backbone(self) -> str:
        """Backbone that the logs name, or else the configuration's name; empty when unknown."""
        names = self.facts.get("MODEL.BACKBONE.NAME")
        if names is None:
            return backbone_name(self.method.config)
        return ", ".join(sorted({backbone_name(name) or name for name in names}))

    @property
    def zero_shot(self) -> bool:
        """Whether nothing was learned, so that neither seed nor shots count."""
        return self.facts.get("zero_shot") == {"True"}

    @property
    def parameters(self) -> int | None:
        """Number of trainable parameters; None where the logs show none, or several."""
        counts = self.facts.get("parameters", set())
        return int(*counts) if len(counts) == 1 else None

    @property
    def few_images(self) -> str:
        """Training images per class where a data set has fewer than shots, as ``4 to 6``."""
        return "" if self.covered else ", ".join(sorted(self.facts.get("images_per_class", ())))


def distinct_seeds(by_seed: dict[str, dict[int, float]]) -> list[int]:
    """Return the first seed of each result, to the two decimals that logs have.

    A zero-shot model has one result whatever the seed: the same one again is no further seed, and
    a deviation of 0 between them would say nothing. Results that differ, as on other devices, stay.

    Args:
        by_seed: metric -> seed -> percent, all of the same seeds.
    """
    found: dict[tuple[float, ...], int] = {}
    for seed in sorted(next(iter(by_seed.values()))):
        found.setdefault(tuple(round(values[seed], 2) for values in by_seed.values()), seed)
    return list(found.values())


def make_row(
    protocol: str, dataset: str, method: Method, line: Method, runs: Runs, ci95: bool
) -> Row:
    """Return means and spreads over seeds, with H for base and new.

    Args:
        protocol: key of TITLES.
        dataset: name of the data set.
        method: the row's trainer and configuration.
        line: the method it is shown under.
        runs: its runs; where there are base and new, all of the same seeds.
        ci95: 95% intervals instead of standard deviations.
    """
    seeds = sorted(next(iter(runs.by_seed.values())))
    row = Row(protocol, dataset, method, line, seeds, facts=runs.facts)
    if row.zero_shot:
        row.seeds = seeds = distinct_seeds(runs.by_seed)
    by_seed = {metric: {s: values[s] for s in seeds} for metric, values in runs.by_seed.items()}
    row.by_seed = {**by_seed}
    row.repeats = list(runs.repeats)
    for metric, of_metric in runs.results.items():
        for seed, result in of_metric.items():
            if seed in by_seed.get(metric, ()):
                row.read.append(result)
            elif seed in runs.by_seed.get(metric, ()):
                row.repeats.append(result)
    row.exact = bool(row.read) and all(result.record is not None for result in row.read)
    row.chosen_on_test = any(result.chosen_on_test for result in row.read)
    for metric, values in runs.beside.items():
        if values.keys() >= set(seeds):
            row.by_seed[metric] = {seed: values[seed] for seed in seeds}
    for metric, values in row.by_seed.items():
        row.mean[metric] = fmean(values.values())
        row.std[metric] = spread(list(values.values()), ci95)
    if {"base", "new"} <= by_seed.keys():
        # As papers print it: H of the mean accuracies. Its spread is that of the seeds' H.
        row.mean["H"] = harmonic(row.mean["base"], row.mean["new"])
        each = [harmonic(by_seed["base"][seed], by_seed["new"][seed]) for seed in seeds]
        row.std["H"] = spread(each, ci95)
    _join_halves_of_all(row)
    return row


def _join_halves_of_all(row: Row) -> None:
    """Set the mean H of base and new among all classes in the way of H."""
    if "H_in_all" in row.mean:
        row.mean["H_in_all"] = harmonic(row.mean["base_in_all"], row.mean["new_in_all"])


def listing(items: Iterable[Any]) -> str:
    """Return sorted items with commas."""
    return ", ".join(map(str, sorted(items)))


def pair_seeds(
    by_seed: dict[str, dict[int, float]], where: str, note: Callable[[str], None]
) -> dict[str, dict[int, float]]:
    """Return base and new of those seeds that have both, naming the other seeds.

    Args:
        by_seed: base and/or new, seed -> percent.
        where: data set and method, for the message.
        note: called with a line that names the seeds that miss one of them.

    Returns:
        The paired values; when no seed has both, those of one metric only.
    """
    base, new = by_seed.get("base", {}), by_seed.get("new", {})
    for have, lack, seeds in (
        ("base", "new", base.keys() - new),
        ("new", "base", new.keys() - base),
    ):
        if seeds:
            note(f"incomplete: {where}: {have} but no {lack} for seed {listing(seeds)}")
    both = sorted(base.keys() & new.keys())
    if not both:
        return {"base": base} if base else {"new": new}
    return {"base": {s: base[s] for s in both}, "new": {s: new[s] for s in both}}


def lines_of(datasets: dict[str, dict[Method, Runs]]) -> dict[Method, Method]:
    """Return method -> method under which it is shown beside its results on other data sets.

    Some methods train longer, or average later epochs, on some data sets or shots (``vit_b16``,
    ``vit_b16_ep50``), and one line of a table covers them all. They are kept apart where one data
    set has results of two of them.
    """

    def family(method: Method) -> Method:
        config = re.sub(r"_(ep|gpa)\d+", "", method.config)
        return replace(method, config=config, shots=0)

    configs: dict[Method, set[str]] = defaultdict(set)
    clashing = set()
    for methods in datasets.values():
        seen = set()
        for method in methods:
            configs[family(method)].add(method.config)
            if (family(method), method.shots) in seen:
                clashing.add(family(method))
            seen.add((family(method), method.shots))
    return {
        method: method
        if family(method) in clashing or len(configs[family(method)]) == 1
        else replace(family(method), shots=method.shots)
        for methods in datasets.values()
        for method in methods
    }


def in_order(datasets: Iterable[str]) -> list[str]:
    """Return data sets in the order of the papers' tables, the embedded ones, then all others."""
    known = ELEVEN + VARIANTS + GENERATED
    return sorted(datasets, key=lambda d: (known.index(d) if d in known else len(known), d))


def groups(protocol: str, source: str, datasets: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """Yield name and data sets of every average: those of the papers' benchmark, and the others.

    Args:
        protocol: key of TITLES.
        source: data set of the training, which no average includes; empty within a data set.
        datasets: those with results.
    """
    expected = [d for d in TABLES[protocol].datasets if d != source]
    others = in_order(set(datasets) - set(expected) - {source})
    if not set(expected).isdisjoint(datasets):
        yield f"average over {len(expected)} {TABLES[protocol].averaged}", expected
    if others:
        yield f"average of {', '.join(others)}", others


def average_row(
    protocol: str,
    name: str,
    expected: list[str],
    line: Method,
    rows: dict[str, Row],
    ci95: bool,
) -> Row:
    """Return a method's average over data sets.

    Args:
        protocol: key of TITLES.
        name: of the average.
        expected: the data sets it should be of.
        line: the method.
        rows: data set -> row, for those it has.
        ci95: 95% intervals instead of standard deviations.
    """
    covered = tuple(d for d in expected if d in rows)
    facts: dict[str, set[str]] = defaultdict(set)
    for dataset in covered:
        for key, values in rows[dataset].facts.items():
            facts[key] |= values
    seeds = sorted(set.intersection(*(set(rows[d].seeds) for d in covered)))
    if not seeds and all(rows[d].zero_shot for d in covered):
        seeds = rows[covered[0]].seeds[:1]  # of any seed
    beside = [m for m in TABLES[protocol].beside if all(m in rows[d].mean for d in covered)]

    def of_seeds(metrics: Iterable[str]) -> dict[str, dict[int, float]]:
        return {
            metric: {
                s: fmean(rows[d].by_seed[metric].get(s, rows[d].mean[metric]) for d in covered)
                for s in seeds
            }
            for metric in metrics
        }

    if seeds:
        runs = Runs(of_seeds(METRICS[protocol]), facts, beside=of_seeds(beside))
        row = make_row(protocol, name, line, line, runs, ci95)
    else:
        row = Row(protocol, name, line, line, [], facts=facts)
    # The mean is that of the data sets' rows, whichever seeds these have.
    for metric in (*METRICS[protocol], *beside):
        row.mean[metric] = fmean(rows[d].mean[metric] for d in covered)
    if has_halves(protocol):
        row.mean["H"] = harmonic(row.mean["base"], row.mean["new"])
    _join_halves_of_all(row)
    row.exact = all(rows[d].exact for d in covered)
    row.chosen_on_test = any(rows[d].chosen_on_test for d in covered)
    row.covered = covered
    row.missing = tuple(d for d in expected if d not in covered)
    return row


def with_same_settings(
    rows: dict[str, Row], where: str, note: Callable[[str], None]
) -> dict[str, Row]:
    """Return those rows of an average whose settings agree, naming the others.

    Settings of the data set, or set in its file, may differ; so may configurations of different
    names, since some methods have one per data set.

    Args:
        rows: data set -> row.
        where: the average, for the message.
        note: called with a line for every difference.
    """
    kept = {dataset for dataset, row in rows.items() if not row.read}
    for config in sorted({row.method.config for row in rows.values()}):
        mine = {d: row for d, row in rows.items() if row.method.config == config and row.read}
        first = {dataset: row.read[0] for dataset, row in mine.items()}
        described = {d: description_across_data_sets(result) for d, result in first.items()}
        kept |= set(leave_out(first, described, where, lambda names: ", ".join(names), note))
    return {dataset: row for dataset, row in rows.items() if dataset in kept}


def note_missing_seeds(protocol: str, rows: list[Row], note: Callable[[str], None]) -> None:
    """Name the seeds that other rows of a table have, and rows of runs with a record lack.

    Args:
        protocol: key of TITLES.
        rows: of the data sets, without averages.
        note: called with a line for every method and set of seeds.
    """
    trained = [row for row in rows if not row.zero_shot]
    tables = {(row.method.source, row.method.shots) for row in trained}
    for table in sorted(tables):
        mine = [row for row in trained if (row.method.source, row.method.shots) == table]
        every = {seed for row in mine for seed in row.seeds}
        lacking: dict[tuple[Method, str], list[str]] = defaultdict(list)
        for row in mine:
            if row.exact and set(row.seeds) != every:
                lacking[row.line, listing(every - set(row.seeds))].append(row.dataset)
        for (line, seeds), datasets in lacking.items():
            note(
                f"missing: {TITLES[protocol]}, {line}: no seed {seeds} of {', '.join(datasets)} "
                f"(others of the table have {listing(every)})"
            )


def protocol_rows(
    protocol: str,
    scores: dict[str, dict[Method, Runs]],
    ci95: bool,
    note: Callable[[str], None],
) -> list[Row]:
    """Return the rows of a protocol, data set by data set, then the averages.

    An average of fewer data sets than it should be of says so in its ``missing``.

    Args:
        protocol: key of TITLES.
        scores: data set -> method -> runs, seeds paired.
        ci95: 95% intervals instead of standard deviations.
        note: called with one line for every method that has one data set of several only.
    """
    lines = lines_of(scores)
    rows = []
    whole: dict[Method, dict[str, Row]] = defaultdict(dict)
    for dataset in in_order(scores):
        for method, runs in sorted(scores[dataset].items()):
            row = make_row(protocol, dataset, method, lines[method], runs, ci95)
            rows.append(row)
            if runs.by_seed.keys() >= set(METRICS[protocol]):
                whole[row.line][dataset] = row
    note_missing_seeds(protocol, rows, note)
    for source in sorted({line.source for line in whole}):
        chosen = {line: parts for line, parts in sorted(whole.items()) if line.source == source}
        datasets = {d for parts in chosen.values() for d in parts} - {source}
        for name, expected in groups(protocol, source, datasets):
            covers = {
                line: {d: parts[d] for d in expected if d in parts}
                for line, parts in chosen.items()
            }
            if max(map(len, covers.values())) < 2:
                continue
            for line, found in covers.items():
                where = f"{TITLES[protocol]}, {line}"
                kept = with_same_settings(found, f"{where}, {name}", note)
                if len(kept) == 1:
                    note(f"not averaged: {where} has {listing(kept)} only")
                if len(kept) > 1:
                    rows.append(average_row(protocol, name, expected, line, kept, ci95))
    return rows


def in_every_table(scores: Scores, note: Callable[[str], None]) -> Scores:
    """Return the scores with every result in each table that it answers.

    A transferred model's accuracy on the data set of its training is a few-shot result, and stands
    beside its targets as well. A zero-shot model depends on neither shots nor source: what it
    reached on a data set stands wherever others have results on it.

    Args:
        scores: all results.
        note: called with one line for every result that another one takes the place of.
    """
    scores = {p: {d: dict(methods) for d, methods in scores[p].items()} for p in scores}
    fewshot, zero_shot = scores["fewshot"], zero_shot_results(scores, note)
    for protocol in ("cross", "dg"):
        tables = scores[protocol]
        targets: dict[str, set[str]] = defaultdict(set)
        for dataset, methods in tables.items():
            for method in methods:
                targets[method.source].add(dataset)
        for method in {m for methods in tables.values() for m in methods}:
            trained = replace(method, source="")
            if trained in fewshot.get(method.source, {}):
                runs = fewshot[method.source][trained]
                tables.setdefault(method.source, {})[method] = runs
                targets[method.source].add(method.source)
        for method, by_dataset in zero_shot.items():
            for source, datasets in targets.items():
                for dataset in datasets & by_dataset.keys():
                    tables[dataset][replace(method, source=source)] = by_dataset[dataset]
    for method, by_dataset in zero_shot.items():
        for dataset in fewshot.keys() & by_dataset.keys():
            fewshot[dataset][method] = by_dataset[dataset]
    return scores


def zero_shot_results(scores: Scores, note: Callable[[str], None]) -> dict[Method, dict[str, Runs]]:
    """Return method -> data set -> its runs on all classes, wherever they were made."""
    found: dict[Method, dict[str, Runs]] = defaultdict(dict)
    for protocol in ("cross", "dg", "fewshot"):
        for dataset, methods in scores[protocol].items():
            for method, runs in methods.items():
                if method.shots == 0:
                    mine = found[replace(method, source="")].setdefault(dataset, Runs())
                    for metric, results in runs.results.items():
                        for seed, result in results.items():
                            mine.add(metric, seed, result, note)
                    mine.repeats += runs.repeats
                    for key, values in runs.facts.items():
                        mine.facts[key] = mine.facts.get(key, set()) | values
    return found


def keep_agreeing(runs: Runs, where: str, note: Callable[[str], None]) -> None:
    """Leave out the runs that have other settings or data than most, and name them."""
    results = {(m, s): runs.results[m][s] for m in sorted(runs.results) for s in runs.results[m]}
    described = {}
    for metric, seed in sorted(results):
        part = "" if metric == "accuracy" else metric
        described[metric, seed] = description(results[metric, seed], part, seed)

    def named(labels: Iterable[tuple[str, int]]) -> str:
        metrics, seeds = map(set, zip(*labels, strict=True))
        of_metrics = f" ({listing(metrics)})" if len(runs.results) > 1 else ""
        return f"seed {listing(seeds)}{of_metrics}"

    kept = leave_out(results, described, where, named, note)
    if len(kept) == len(results):
        return
    runs.by_seed, runs.facts = {}, {}
    for metric, seed in kept:
        result = results[metric, seed]
        runs.by_seed.setdefault(metric, {})[seed] = result.value
        for key, fact in result.facts.items():
            runs.facts.setdefault(key, set()).add(fact)


def make_rows(scores: Scores, ci95: bool, note: Callable[[str], None]) -> list[Row]:
    """Return the rows of all tables, protocol by protocol.

    Args:
        scores: all results.
        ci95: 95% intervals instead of standard deviations.
        note: called with one line for all that is left out or missing.
    """
    rows, compared = [], set()
    for protocol, datasets in in_every_table(scores, note).items():
        for dataset, methods in datasets.items():
            for method, runs in methods.items():
                where = f"{TITLES[protocol]}, {dataset}, {method}"
                if id(runs) not in compared:  # the same runs may stand in several tables
                    compared.add(id(runs))
                    keep_agreeing(runs, where, note)
                if has_halves(protocol):
                    runs.by_seed = pair_seeds(runs.by_seed, where, note)
        rows += protocol_rows(protocol, datasets, ci95, note)
    return rows
