"""The learning rate of every method's ``tiny.yaml``: ``python -m benchmarks.rates``.

One rule for all: of half, once and twice a method's usual rate the one with the best result on
lower-case letters, a data set that nothing else is reported of. Results are kept in
``benchmarks/results/rates.jsonl``; what is chosen is printed, and stands in ``docs/benchmark.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import fmean

from tabulate import tabulate

from benchmarks.sweep import ROOT, Run, config_of, sweep, sweep_parser
from protocols import FOR_SETTINGS
from scripts.methods import method_names, read_method
from support.command_line import run_command
from support.filled import fill_document

SEEDS = (1, 2)
FACTORS = (0.5, 1, 2)
#: the embedded data's usual rate, and those of methods whose own is of another kind
USUAL = 0.01
OWN = {
    "LoRVP": 0.1,  # its picture starts at zero and does not move with less
    "CLIPLoRA": 0.002,  # AdamW, ten times the published rate for a small part of the steps
    "TwoStageFS": 0.002,
    "TipAdapterF": 0.001,  # published
    "ZSLP": 0.1,
    "CLAP": 0.1,
}
#: nothing is trained, or with step sizes of its own
WITHOUT = ("TipAdapter", "LPPlusPlus")
TRAINED = [method for method in map(read_method, method_names()) if method.trains]
METHODS = {
    method.trainer: "base2new" if "base2new" in method.protocols else "fewshot"
    for method in TRAINED
    if method.trainer not in WITHOUT
}
OUT = ROOT / "benchmarks" / "results" / "rates.jsonl"
DOCUMENT = ROOT / "docs" / "benchmark.md"


def rates(method: str) -> list[float]:
    """Return the rates that are tried for a method."""
    return [round(factor * OWN.get(method, USUAL), 6) for factor in FACTORS]


def runs() -> list[Run]:
    """Return all runs, of every method and rate."""
    return [
        Run(method, method, FOR_SETTINGS, seed, ("OPTIM.LR", rate), protocol=protocol)
        for method, protocol in METHODS.items()
        for rate in rates(method)
        for seed in SEEDS
    ]


def shipped(method: str) -> float:
    """Return the rate of a method's ``tiny.yaml``."""
    return config_of(Run(method, method, FOR_SETTINGS, 1), FOR_SETTINGS, "all", "", "").OPTIM.LR


def found(results: Sequence[dict]) -> dict[str, dict[float, float]]:
    """Return method -> rate -> mean over the seeds, of H or of the accuracy on all classes."""
    means: dict[str, dict[float, float]] = {}
    for method, protocol in METHODS.items():
        measure = "hm" if protocol == "base2new" else "all"
        for rate in rates(method):
            values = [r[measure] for r in results if (r["method"], r["pairs"][1]) == (method, rate)]
            if len(values) == len(SEEDS):
                means.setdefault(method, {})[rate] = fmean(values)
    return means


def best(means: dict[float, float]) -> float:
    """Return the rate with the best mean, the smaller one of equals."""
    return max(sorted(means), key=lambda rate: means[rate])


def table(results: Sequence[dict]) -> str:
    """Lay out the means of every method and rate, the best in bold."""
    lines = []
    for method, means in found(results).items():
        cells = [
            f"{f'**{mean:.1f}**' if rate == best(means) else f'{mean:.1f}'} ({rate:g})"
            for rate, mean in sorted(means.items())
        ]
        measure = "H" if METHODS[method] == "base2new" else "all classes"
        lines.append([method, measure, *cells])
    header = ["method", "measure", "half", "usual", "twice"]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return sweep_parser(__doc__)


def act(args: argparse.Namespace) -> None:
    """Run what is missing, print what is chosen, fill the document."""
    results = sweep(runs(), OUT, args.root, args.jobs)
    for method, means in found(results).items():
        print(f"{method}: {best(means):g}")
    fill_document(DOCUMENT, {"rates": table(results)})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
