"""All methods side by side on the embedded data: ``python -m benchmarks.methods``.

Runs what ``benchmarks/results/methods.jsonl`` lacks and fills the tables and figures of
``docs/benchmark.md`` and the table of averages in ``README.md``: base-to-new and MMLoP's ablation
on both data sets, few-shot learning of some methods on the digits, and of those that fit only the
classes of their training; every method with its shipped ``tiny.yaml``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.documents import fill_document
from benchmarks.sweep import ROOT, Run, sweep
from results.plots import save_plots
from results.rows import Row, make_rows
from results.runs import TITLES, Method, Runs, Scores
from results.tables import cell, render_tables
from scripts.ablation import read_tables
from scripts.methods import method_names, read_method
from support.command_line import add_traceback, positive, run_command

DATA = ("digits", "shapes")
SEEDS = (1, 2, 3)
TRAINED = [method for method in map(read_method, method_names()) if method.trains]
#: all that have something to train
METHODS = tuple(dict.fromkeys(method.trainer for method in TRAINED))
#: those of them that fit the classes of their training only
OF_THEIR_CLASSES = tuple(m.trainer for m in TRAINED if "base2new" not in m.protocols)
FEW_SHOT_METHODS = ("CoOp", "PromptSRC", "MMLoP", *OF_THEIR_CLASSES)
SHOTS = (1, 2, 4, 8, 16)


#: the tables of MMLoP's paper: table -> run -> config pairs
ABLATION = read_tables("MMLoP")
DOCUMENT = ROOT / "docs" / "benchmark.md"
README = ROOT / "README.md"


def base_to_new_runs() -> list[Run]:
    """Return runs of every method that has the protocol; zero-shot CLIP needs one seed."""
    zero_shot = [Run("ZeroshotCLIP", "ZeroshotCLIP", data, SEEDS[0]) for data in DATA]
    methods = [method for method in METHODS if method not in OF_THEIR_CLASSES]
    return zero_shot + [Run(m, m, data, s) for data in DATA for m in methods for s in SEEDS]


def ablation_runs() -> list[Run]:
    """Return runs of MMLoP with parts changed; unchanged it is among the base-to-new runs."""
    changed = {run: pairs for runs in ABLATION.values() for run, pairs in runs.items() if pairs}
    return [
        Run(run, "MMLoP", data, seed, pairs)
        for run, pairs in changed.items()
        for data in DATA
        for seed in SEEDS
    ]


def few_shot_runs() -> list[Run]:
    """Return runs of some methods with 1 to 16 images per class of the digits."""
    zero_shot = Run("ZeroshotCLIP", "ZeroshotCLIP", DATA[0], SEEDS[0], protocol="fewshot")
    return [zero_shot] + [
        Run(m, m, DATA[0], seed, shots=shots, protocol="fewshot")
        for m in FEW_SHOT_METHODS
        for shots in SHOTS
        for seed in SEEDS
    ]


def rows_of(results: Sequence[dict]) -> list[Row]:
    """Average the results of runs over seeds, and over data sets."""
    scores: Scores = {p: defaultdict(lambda: defaultdict(Runs)) for p in TITLES}
    for result in results:
        few_shot = result["protocol"] == "fewshot"
        shots = 0 if few_shot and result["method"] == "ZeroshotCLIP" else result["shots"]
        method = Method(result["label"], result["config"], shots)
        runs = scores[result["protocol"]][result["data"]][method]
        for part in ("accuracy",) if few_shot else ("base", "new"):
            value = result["all" if few_shot else part]
            runs.by_seed.setdefault(part, {})[result["seed"]] = value
        runs.facts = {
            "MODEL.BACKBONE.NAME": {result["config"]},
            "parameters": {str(result["parameters"])},
        }
    return make_rows(scores, ci95=False, note=print)


def averages_table(rows: Sequence[Row]) -> str:
    """Lay out base-to-new averages over the data sets, the method with the largest H first."""
    averages = [row for row in rows if row.protocol == "base2new" and row.covered]
    lines = [
        {"method": row.method.trainer, "trained parameters": f"{row.parameters:,}"}
        | {metric: cell(row, metric) for metric in ("base", "new", "H")}
        for row in sorted(averages, key=lambda row: -row.mean["H"])
    ]
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def shots_table(rows: Sequence[Row]) -> str:
    """Lay out few-shot accuracies, a method per line and a column per number of shots."""
    cells: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row.method.shots):
        line = cells.setdefault(row.method.trainer, {"method": row.method.trainer})
        line[f"{row.method.shots} shots"] = cell(row, "accuracy")
    columns = dict.fromkeys(key for line in cells.values() for key in line)
    lines = [{key: line.get(key, "-") for key in columns} for line in cells.values()]
    return tabulate(lines, headers="keys", tablefmt="github") + "\n"


def ablation_table(results: Sequence[dict], runs: Iterable[str]) -> str:
    """Return the named runs, a line each: parameters, and base, new and H per data set and average.

    H of the average is the harmonic mean of the averages of base and new.
    """
    by_run = defaultdict(dict)
    for row in rows_of(results):
        by_run[row.method.trainer][row.dataset] = row
    lines = []
    for run in runs:
        rows = by_run[run]
        line = {"run": run, "parameters": f"{rows[DATA[0]].parameters:,}"}
        for dataset, row in rows.items():
            values = [f"{row.mean[metric]:.1f}" for metric in ("base", "new", "H")]
            short = "average" if dataset.startswith("average") else dataset
            line[f"{short}: base / new / H"] = f"{' / '.join(values)} ± {row.std['H']:.1f}"
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="data root")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Run what is missing, fill the document, draw the figures."""
    out = ROOT / "benchmarks" / "results" / "methods.jsonl"

    def done(runs: list[Run]) -> list[dict]:
        return sweep(runs, out, args.root, args.jobs)

    methods, few_shot, ablation = map(done, (base_to_new_runs(), few_shot_runs(), ablation_runs()))
    whole = next(run for run, pairs in ABLATION["steps"].items() if not pairs)
    ablation += [{**r, "label": whole} for r in methods if r["label"] == "MMLoP"]
    compared, shots = rows_of(methods), rows_of(few_shot)
    fill_document(
        DOCUMENT,
        {
            "base2new": render_tables(compared, "github", "accuracy"),
            "fewshot": shots_table(shots),
            **{table: ablation_table(ablation, runs) for table, runs in ABLATION.items()},
        },
    )
    fill_document(README, {"averages": averages_table(compared)})
    save_plots(compared + shots, ROOT / "docs" / "figures", print)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
