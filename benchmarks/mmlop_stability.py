"""Which start values, clipping and learning rates let MMLoP train without collapse.

``python -m benchmarks.mmlop_stability`` runs the grid on the embedded data and prints the table of
``docs/mmlop_stability.md``; results are kept in ``benchmarks/results/mmlop_stability.jsonl``.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path

from tabulate import tabulate

from benchmarks.sweep import ROOT, Run, summarise, sweep

RATES = (0.0025, 0.005, 0.01, 0.02)
#: deviation of U; 0 splits the product's 0.02 evenly, 1 leaves all of it to V
SPLITS = {"U~N(0,1)": 1.0, "balanced": 0.0}
CLIPS = (0.0, 1.0)


def grid(data: tuple[str, ...], seeds: tuple[int, ...]) -> list[Run]:
    """All settings of the study."""
    return [
        Run(
            label=f"{split}, clip {clip:g}, lr {lr:g}",
            method="MMLoP",
            data=name,
            seed=seed,
            pairs=("TRAINER.MMLOP.INIT_STD_U", std, "OPTIM.CLIP_GRAD_NORM", clip, "OPTIM.LR", lr),
        )
        for name, (split, std), clip, lr, seed in product(data, SPLITS.items(), CLIPS, RATES, seeds)
    ]


def main() -> None:
    """Run what is missing of the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "shapes"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--root", type=Path, default=ROOT / "data")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "mmlop_stability.jsonl"
    )
    args = parser.parse_args()
    results = sweep(grid(tuple(args.data), tuple(args.seeds)), args.out, args.root, args.jobs)
    print(tabulate(summarise(results), headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
