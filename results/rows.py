"""Means and spreads over seeds, H, and averages over data sets."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev

from protocols import ELEVEN, VARIANTS

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
    metric -> seed -> percent. An average has the data sets it is of in ``covered`` and those it
    lacks in ``missing``; both are empty elsewhere.
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
    def parameters(self) -> int | None:
        """Number of trainable parameters; None where the logs show none, or several."""
        counts = self.facts.get("parameters", set())
        return int(*counts) if len(counts) == 1 else None

    @property
    def few_images(self) -> str:
        """Training images per class where a data set has fewer than shots, as ``4 to 6``."""
        return "" if self.covered else ", ".join(sorted(self.facts.get("images_per_class", ())))


# Ways to write a backbone: its own name, the file of its weights, the start of a config's name.
BACKBONES = {
    "ViT-B/16": ("vit-b-16", "vit_b16"),
    "ViT-B/32": ("vit-b-32", "vit_b32"),
    "ViT-L/14": ("vit-l-14", "vit_l14"),
    "RN50": ("rn50",),
    "RN101": ("rn101",),
    "tiny": ("tiny",),
}


def backbone_name(text: str) -> str:
    """Return the backbone that a name, a file of weights or a config's name stands for, if any."""
    if text in BACKBONES:
        return text
    stem = text.rpartition("/")[2].removesuffix(".pt").lower()
    for backbone, spellings in BACKBONES.items():
        if any(re.match(rf"{re.escape(s)}(?![a-z0-9])", stem) for s in spellings):
            return backbone
    return ""


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
    by_seed = runs.by_seed
    seeds = sorted(next(iter(by_seed.values())))
    row = Row(protocol, dataset, method, line, seeds, facts=runs.facts, by_seed=by_seed)
    for metric, values in by_seed.items():
        row.mean[metric] = fmean(values.values())
        row.std[metric] = spread(list(values.values()), ci95)
    if {"base", "new"} <= by_seed.keys():
        # As papers print it: H of the mean accuracies. Its spread is that of the seeds' H.
        row.mean["H"] = harmonic(row.mean["base"], row.mean["new"])
        each = [harmonic(by_seed["base"][seed], by_seed["new"][seed]) for seed in seeds]
        row.std["H"] = spread(each, ci95)
    return row


def listing(items: Iterable[object]) -> str:
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
    """Return data sets in the order of the papers' tables, then those that these lack."""
    known = ELEVEN + VARIANTS
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
    if seeds:
        by_seed = {
            metric: {s: fmean(rows[d].by_seed[metric][s] for d in covered) for s in seeds}
            for metric in METRICS[protocol]
        }
        row = make_row(protocol, name, line, line, Runs(by_seed, facts), ci95)
    else:
        row = Row(protocol, name, line, line, [], facts=facts)
    # The mean is that of the data sets' rows, whichever seeds these have.
    for metric in METRICS[protocol]:
        row.mean[metric] = fmean(rows[d].mean[metric] for d in covered)
    if has_halves(protocol):
        row.mean["H"] = harmonic(row.mean["base"], row.mean["new"])
    row.covered = covered
    row.missing = tuple(d for d in expected if d not in covered)
    return row


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
            for line, mine in covers.items():
                if len(mine) == 1:
                    note(f"not averaged: {TITLES[protocol]}, {line} has {listing(mine)} only")
                if len(mine) > 1:
                    rows.append(average_row(protocol, name, expected, line, mine, ci95))
    return rows


def in_every_table(scores: Scores) -> Scores:
    """Return the scores with every result in each table that it answers.

    A transferred model's accuracy on the data set of its training is a few-shot result, and stands
    beside its targets as well. A zero-shot model depends on neither shots nor source: what it
    reached on a data set stands wherever others have results on it.
    """
    scores = {p: {d: dict(methods) for d, methods in scores[p].items()} for p in scores}
    fewshot, zero_shot = scores["fewshot"], zero_shot_results(scores)
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


def zero_shot_results(scores: Scores) -> dict[Method, dict[str, Runs]]:
    """Return method -> data set -> its runs on all classes, wherever they were made."""
    found: dict[Method, dict[str, Runs]] = defaultdict(dict)
    for protocol in ("cross", "dg", "fewshot"):
        for dataset, methods in scores[protocol].items():
            for method, runs in methods.items():
                if method.shots == 0:
                    mine = found[replace(method, source="")].setdefault(dataset, Runs())
                    for metric, by_seed in runs.by_seed.items():
                        mine.by_seed.setdefault(metric, {}).update(by_seed)
                    for key, values in runs.facts.items():
                        mine.facts[key] = mine.facts.get(key, set()) | values
    return found


def make_rows(scores: Scores, ci95: bool, note: Callable[[str], None]) -> list[Row]:
    """Return the rows of all tables, protocol by protocol."""
    rows = []
    for protocol, datasets in in_every_table(scores).items():
        if has_halves(protocol):
            for dataset, methods in datasets.items():
                for method, runs in methods.items():
                    where = f"{TITLES[protocol]}, {dataset}, {method}"
                    runs.by_seed = pair_seeds(runs.by_seed, where, note)
        rows += protocol_rows(protocol, datasets, ci95, note)
    return rows
