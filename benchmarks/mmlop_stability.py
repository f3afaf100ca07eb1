"""Which start values, clipping and learning rates let MMLoP train without collapse.

``python -m benchmarks.mmlop_stability`` runs the grid on the embedded data and prints the tables of
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
#: name -> config pairs: how the start deviation of 0.02 is split between U and V, and what else
#: slows U down
STARTS: dict[str, tuple[object, ...]] = {
    "U~N(0,1)": ("TRAINER.MMLOP.INIT_STD_U", 1.0),
    "U~N(0,1), lr of U x 0.1": ("TRAINER.MMLOP.INIT_STD_U", 1.0, "TRAINER.MMLOP.LR_MULT_U", 0.1),
    "balanced": ("TRAINER.MMLOP.INIT_STD_U", 0.0),
}
#: largest gradient norm; 0 is no clipping
CLIPS = (0.0, 1.0)
EPOCHS = 15
#: a run has collapsed when its harmonic mean is so many points below that of zero-shot CLIP; less
#: is what few shots and other classes cost any method now and then
COLLAPSE = 5.0


def grid(data: str, seeds: list[int], rates: list[float]) -> list[Run]:
    """All settings of the study on one data set, and zero-shot CLIP."""
    runs = [
        Run(
            label=f"{start} / clip {clip:g} / lr {rate:g}",
            method="MMLoP",
            data=data,
            seed=seed,
            pairs=(*pairs, "OPTIM.CLIP_GRAD_NORM", clip, "OPTIM.LR", rate)
            + ("OPTIM.MAX_EPOCH", EPOCHS),
        )
        for (start, pairs), clip, rate, seed in product(STARTS.items(), CLIPS, rates, seeds)
    ]
    return [Run("zero-shot", "ZeroshotCLIP", data, seeds[0]), *runs]


def table(results: list[dict[str, object]]) -> str:
    """Rows of start and clipping, columns of learning rates: HM, its worst seed, collapses."""
    zero_shot = next(r["hm"] for r in results if r["label"] == "zero-shot")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in summarise([r for r in results if r["label"] != "zero-shot"], by=("label",)):
        start, clip, rate = row["label"].split(" / ")
        values = [r["hm"] for r in results if r["label"] == row["label"]]
        collapsed = sum(value < zero_shot - COLLAPSE for value in values)
        text = f"{row['hm']} (worst {min(values):.1f}"
        text += f", {collapsed} of {len(values)} collapsed)" if collapsed else ")"
        rows.setdefault((start, clip), {"start": start, "clipping": clip})[rate] = text
    lines = [f"zero-shot HM {zero_shot:.1f}", ""]
    return "\n".join(lines) + tabulate(list(rows.values()), headers="keys", tablefmt="github")


def main() -> None:
    """Run what is missing of the grid and print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "shapes"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--root", type=Path, default=ROOT / "data")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "mmlop_stability.jsonl"
    )
    args = parser.parse_args()
    for data in args.data:
        results = sweep(grid(data, args.seeds, args.rates), args.out, args.root, args.jobs)
        print(f"\n{data}: {table(results)}")


if __name__ == "__main__":
    main()
