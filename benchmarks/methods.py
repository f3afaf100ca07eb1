"""All methods side by side on the embedded data: ``python -m benchmarks.methods``.

Base-to-new with the shipped ``tiny.yaml`` of each method; results are kept in
``benchmarks/results/methods.jsonl`` and printed as a table for each data set.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tabulate import tabulate

from benchmarks.sweep import ROOT, Run, summarise, sweep

METHODS = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MPL", "LoRVP", "MMLoP")


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "shapes"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--root", type=Path, default=ROOT / "data")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "methods.jsonl"
    )
    args = parser.parse_args()
    for data in args.data:
        runs = [Run("ZeroshotCLIP", "ZeroshotCLIP", data, args.seeds[0])]
        runs += [Run(m, m, data, seed) for m in args.methods for seed in args.seeds]
        rows = summarise(sweep(runs, args.out, args.root, args.jobs), by=("method",))
        print(f"\n{data}\n\n{tabulate(rows, headers='keys', tablefmt='github')}")


if __name__ == "__main__":
    main()
