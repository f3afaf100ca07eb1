"""Results out of logs: mean and spread over seeds, base, new and their harmonic mean H.

Without a directory, everything below ``output/`` becomes tables: base-to-new, few-shot, and models
tested on other data sets. With a directory, upstream's behaviour: the mean over the runs in it.

    python parse_test_res.py
    python parse_test_res.py --format latex
    python parse_test_res.py output/base2new/test_new/digits/shots_16/CoOp/tiny --test-log

A log counts when it shows a result after the end of the training (both ``Finish training`` and
``Finished training`` mark it), or, in a log of a test, after ``=> result``. Where a run was started
several times, in one log or in several, its last start counts: results from before it may be of
other weights. Logs that do not count are named on the standard error output.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev

from tabulate import tabulate

TRAIN_END = re.compile(r"Finish(ed)? training")
TEST_END = re.compile(r"=> result")
# Opens every start of a run.
START = "** Arguments **"
# Written with the arguments of a run that only tests, so that its log has no end of a training.
EVAL_ONLY = "eval_only: True"


class BadLog(Exception):
    """A run without a usable log; the text says why."""


def read_log(path: Path, keyword: str, test_log: bool | None) -> float:
    """Return the last value of a metric in a finished log, in percent.

    Args:
        path: the log; of several starts in it only the last is read.
        keyword: the metric: accuracy, error, macro_f1 or average.
        test_log: whether it is the log of a test; None lets the log tell.

    Raises:
        BadLog: when the log is unfinished or holds no such value.
    """
    lines = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines()]
    if START in lines:
        lines = lines[len(lines) - lines[::-1].index(START) :]
    if test_log is None:
        test_log = EVAL_ONLY in lines
    gate = TEST_END if test_log else TRAIN_END
    ends = [number for number, line in enumerate(lines) if gate.fullmatch(line)]
    if not ends:
        raise BadLog(f"{path}: unfinished")
    pattern = re.compile(rf"\* {re.escape(keyword)}: ([\d.eE+-]+|nan|inf)%")
    values = [match[1] for line in lines[ends[0] :] if (match := pattern.search(line))]
    if not values:
        raise BadLog(f"{path}: no {keyword} after its end line")
    try:
        value = float(values[-1])
    except ValueError:
        raise BadLog(f"{path}: {keyword} is {values[-1]!r}, not a number") from None
    if not math.isfinite(value):
        raise BadLog(f"{path}: {keyword} is {value}")
    return value


def read_run(folder: Path, keyword: str, test_log: bool | None) -> tuple[Path, float]:
    """Return the log of a run's last start, and its value in percent.

    Args:
        folder: run folder with ``log.txt`` and, from upstream's repeated runs, ``log.txt-<date>``.
        keyword: the metric.
        test_log: whether these are logs of a test; None lets them tell.

    Raises:
        BadLog: when there is no log, or it does not count.
    """
    # The order of the names is that of the dates in them.
    logs = sorted(path for path in folder.glob("log.txt*") if path.is_file())
    if not logs:
        raise BadLog(f"{folder}: no log.txt")
    return logs[-1], read_log(logs[-1], keyword, test_log)


def spread(values: list[float], ci95: bool) -> float:
    """Return the population standard deviation of values, or the half width of its 95% interval."""
    std = pstdev(values)
    return 1.96 * std / math.sqrt(len(values)) if ci95 else std


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two accuracies; 0 when both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


# --- one directory, as upstream -------------------------------------------------------------------


def summarize(directory: Path, args: argparse.Namespace) -> float | None:
    """Print the mean over the runs of a directory.

    Args:
        directory: its sub-folders are runs.
        args: the parsed command line.

    Returns:
        The mean in percent; None when no run counts.
    """
    print(f"Parsing files in {directory}")
    values = []
    for folder in visible_folders(directory):
        try:
            path, value = read_run(folder, args.keyword, args.test_log)
        except BadLog as reason:
            print(f"skipped: {reason}", file=sys.stderr)
            continue
        print(f"file: {path}. {args.keyword}: {value:.2f}%. ")
        values.append(value)
    if not values:
        return None
    mean = fmean(values)
    print("===")
    print(f"Summary of directory: {directory}")
    print(f"* {args.keyword}: {mean:.2f}% +- {spread(values, args.ci95):.2f}%")
    print("===")
    return mean


def visible_folders(directory: Path) -> list[Path]:
    """Return the sub-folders of a directory in the order of their names."""
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))


def parse_directory(args: argparse.Namespace) -> None:
    """Do what upstream's script does with a directory.

    Raises:
        FileNotFoundError: when the directory does not exist or no run in it counts.
    """
    directory = Path(args.directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}")
    experiments = visible_folders(directory) if args.multi_exp else [directory]
    means = [m for e in experiments if (m := summarize(e, args)) is not None]
    if not means:
        flag = "" if args.test_log else "; --test-log reads the logs of tests"
        raise FileNotFoundError(f"Nothing found in {directory}{flag}")
    if args.multi_exp:
        print(f"Average performance\n* {args.keyword}: {fmean(means):.2f}%")


# --- everything below output/ as tables -----------------------------------------------------------

# Run folders below the output folder, by protocol; the first that fits counts.
LAYOUTS = {
    "base2new": r"base2new/(?P<part>train_base|test_base|test_new)/(?P<dataset>[^/]+)"
    r"/shots_(?P<shots>\d+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)/seed(?P<seed>\d+)",
    "cross": r"evaluation/(?P<trainer>[^/]+)/(?P<config>[^/]+)_(?P<shots>\d+)shots"
    r"(?P<extra>(/[^/]+)*)/(?P<dataset>[^/]+)/seed(?P<seed>\d+)",
    "fewshot": r"(few_shot/)?(?P<dataset>[^/]+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)"
    r"_(?P<shots>\d+)shots(?P<extra>(/[^/]+)*)/seed(?P<seed>\d+)",
}
TITLES = {
    "base2new": "Base-to-new",
    "cross": "Tested on other data sets",
    "fewshot": "Few-shot",
}
# The training run tests on base itself; test_base is for weights that were trained elsewhere.
PARTS = {"train_base": "base", "test_base": "base", "test_new": "new", None: "accuracy"}
METRICS = {"base2new": ("base", "new"), "cross": ("accuracy",), "fewshot": ("accuracy",)}


@dataclass(frozen=True, order=True)
class Method:
    """A row of a table: one trainer in one configuration."""

    trainer: str
    config: str
    shots: int

    def __str__(self) -> str:
        return f"{self.trainer} {self.config} ({self.shots} shots)"


# protocol -> data set -> method -> metric -> seed -> percent
Scores = dict[str, dict[str, dict[Method, dict[str, dict[int, float]]]]]


def collect(output: Path, keyword: str, note: Callable[[str], None]) -> Scores:
    """Return all finished results below a folder.

    Args:
        output: folder in the layout of the scripts (and of upstream's).
        keyword: the metric.
        note: called with one line for every run that does not count.
    """
    scores: Scores = {p: defaultdict(lambda: defaultdict(dict)) for p in LAYOUTS}
    # test_base comes before train_base, so that of two base accuracies that of the training counts.
    for folder in sorted({log.parent for log in output.rglob("log.txt*")}):
        name = folder.relative_to(output).as_posix()
        matches = [(p, m) for p, layout in LAYOUTS.items() if (m := re.fullmatch(layout, name))]
        if not matches:
            note(f"skipped: {folder}: not the layout of a known protocol")
            continue
        protocol, match = matches[0]
        part = match.groupdict().get("part")
        test_log = True if part in ("test_base", "test_new") or protocol == "cross" else None
        try:
            _, value = read_run(folder, keyword, test_log)
        except BadLog as reason:
            note(f"skipped: {reason}")
            continue
        config = match["config"] + match.groupdict().get("extra", "")
        method = Method(match["trainer"], config, int(match["shots"]))
        metrics = scores[protocol][match["dataset"]][method]
        metrics.setdefault(PARTS[part], {})[int(match["seed"])] = value
    return scores


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


# --- output ---------------------------------------------------------------------------------------


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


def parse_output(args: argparse.Namespace) -> None:
    """Print everything below the output folder.

    Raises:
        FileNotFoundError: when there is no finished result.
    """
    output = Path(args.output)
    if not output.is_dir():
        raise FileNotFoundError(f"no directory {output}: run something first, or pass --output")

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    rows = make_rows(collect(output, args.keyword, note), args.ci95, note)
    if not rows:
        raise FileNotFoundError(f"Nothing found in {output}")
    print_rows(rows, args.format or "github", args.keyword)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Mean results over seeds, from logs.")
    add = parser.add_argument
    add("directory", nargs="?", help="folder of runs; without it, tables of everything in output/")
    add("--output", metavar="DIR", help="other folder for the tables (default: output)")
    add("--format", choices=["github", "latex", "csv", "json"], help="of the tables")
    add("--ci95", action="store_true", help="95%% confidence intervals, not standard deviations")
    add("--keyword", default="accuracy", help="metric: accuracy, error, macro_f1, average")
    add("--test-log", action="store_true", help="the directory holds logs of tests only")
    add("--multi-exp", action="store_true", help="the directory holds several experiments")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: 0, or 2 when nothing was found.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.directory is None:
            if args.test_log or args.multi_exp:
                parser.error("--test-log and --multi-exp need a directory")
            args.output = args.output or os.path.relpath(Path(__file__).parent / "output")
            parse_output(args)
        else:
            if args.format or args.output:
                parser.error("--format and --output are for the tables: leave out the directory")
            parse_directory(args)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
