"""Means and spreads over seeds, H, and averages over data sets."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from .runs import METRICS, TITLES, Method, Scores


def spread(values: list[float], ci95: bool) -> float:
    """Return the population standard deviation of values, or the half width of its 95% interval."""
    std = pstdev(values)
    return 1.96 * std / math.sqrt(len(values)) if ci95 else std


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two accuracies; 0 when both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


@dataclass
class Row:
    """One line of a table; accuracies and their spreads in percent."""

    protocol: str
    dataset: str
    method: Method
    seeds: list[int]
    mean: dict[str, float] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)


def make_row(
    protocol: str,
    dataset: str,
    method: Method,
    by_seed: dict[str, dict[int, float]],
    ci95: bool,
) -> Row:
    """Return means and spreads over seeds, with H for base and new.

    Args:
        protocol: key of LAYOUTS.
        dataset: name of the data set.
        method: the row's trainer and configuration.
        by_seed: for every metric, seed -> percent; all of the same seeds where there are both.
        ci95: 95% intervals instead of standard deviations.
    """
    seeds = sorted(next(iter(by_seed.values())))
    row = Row(protocol, dataset, method, seeds)
    for metric, values in by_seed.items():
        row.mean[metric] = fmean(values.values())
        row.std[metric] = spread(list(values.values()), ci95)
    if {"base", "new"} <= by_seed.keys():
        # As papers print it: H of the mean accuracies. Its spread is that of the seeds' H.
        row.mean["H"] = harmonic(row.mean["base"], row.mean["new"])
        each = [harmonic(by_seed["base"][seed], by_seed["new"][seed]) for seed in seeds]
        row.std["H"] = spread(each, ci95)
    return row


def listing(numbers: Iterable[int]) -> str:
    """Return numbers in order, with commas."""
    return ", ".join(map(str, sorted(numbers)))


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


def family(method: Method) -> Method:
    """Return the method without the number of epochs in its configuration's name.

    Some methods train longer on some data sets or shots (``vit_b16``, ``vit_b16_ep50``), and one
    average covers them all.
    """
    return Method(method.trainer, re.sub(r"_ep\d+", "", method.config), method.shots)


def join_families(
    scores: dict[str, dict[Method, dict[str, dict[int, float]]]],
) -> dict[Method, dict[str, dict[str, dict[int, float]]]]:
    """Return method -> data set -> results, configurations that differ in epochs taken as one.

    They are kept apart where one data set has results of two of them.
    """
    members: dict[Method, set[Method]] = defaultdict(set)
    clashing = set()
    for methods in scores.values():
        seen = set()
        for method in methods:
            members[family(method)].add(method)
            if family(method) in seen:
                clashing.add(family(method))
            seen.add(family(method))
    joined: dict[Method, dict] = defaultdict(dict)
    for dataset, methods in scores.items():
        for method, results in methods.items():
            one = family(method)
            if one in clashing or len(members[one]) == 1:
                one = method
            joined[one][dataset] = results
    return joined


def average_rows(
    protocol: str,
    scores: dict[str, dict[Method, dict[str, dict[int, float]]]],
    ci95: bool,
    note: Callable[[str], None],
) -> list[Row]:
    """Return the averages over data sets of methods that cover the same ones.

    A method that misses data sets which others of its kind cover is named and left out: its
    average would be of something else.

    Args:
        protocol: key of LAYOUTS.
        scores: data set -> method -> metric -> seed -> percent, seeds paired.
        ci95: 95% intervals instead of standard deviations.
        note: called with one line for every method that is left out.
    """
    wanted = set(METRICS[protocol])
    complete = {
        dataset: {method: r for method, r in methods.items() if r.keys() >= wanted}
        for dataset, methods in scores.items()
    }
    joined = join_families(complete)
    covers = {method: frozenset(by_dataset) for method, by_dataset in joined.items()}
    rows = []
    for method, by_dataset in sorted(joined.items()):
        cover = covers[method]
        larger = [other for other in covers.values() if other > cover]
        if larger:
            missing = sorted(max(larger, key=lambda c: (len(c), sorted(c))) - cover)
            note(f"not averaged: {TITLES[protocol]}, {method} lacks {', '.join(missing)}")
            continue
        if len(cover) < 2:
            continue
        name = f"average of {', '.join(sorted(cover))}"
        parts = {d: make_row(protocol, d, method, r, ci95) for d, r in by_dataset.items()}
        seeds = sorted(set.intersection(*(set(part.seeds) for part in parts.values())))
        if seeds:
            by_seed = {
                metric: {s: fmean(by_dataset[d][metric][s] for d in cover) for s in seeds}
                for metric in METRICS[protocol]
            }
            row = make_row(protocol, name, method, by_seed, ci95)
        else:
            row = Row(protocol, name, method, [])
        # The mean is that of the data sets' rows, whichever seeds these have.
        for metric in METRICS[protocol]:
            row.mean[metric] = fmean(part.mean[metric] for part in parts.values())
        if protocol == "base2new":
            row.mean["H"] = harmonic(row.mean["base"], row.mean["new"])
        rows.append(row)
    return rows


def make_rows(scores: Scores, ci95: bool, note: Callable[[str], None]) -> list[Row]:
    """Return the rows of all tables, data set by data set and then the averages."""
    rows = []
    for protocol, datasets in scores.items():
        paired = {
            dataset: {
                method: pair_seeds(r, f"{TITLES[protocol]}, {dataset}, {method}", note)
                if protocol == "base2new"
                else r
                for method, r in methods.items()
            }
            for dataset, methods in datasets.items()
        }
        for dataset, methods in sorted(paired.items()):
            for method, by_seed in sorted(methods.items()):
                rows.append(make_row(protocol, dataset, method, by_seed, ci95))
        rows += average_rows(protocol, paired, ci95, note)
    return rows
