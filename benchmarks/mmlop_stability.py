"""Which start values, clipping, text prompts and learning rates MMLoP trains well with.

``python -m benchmarks.mmlop_stability`` runs the grid on the embedded data and fills the tables of
``docs/mmlop_stability.md``; results are kept in ``benchmarks/results/mmlop_stability.jsonl``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean, pstdev

from tabulate import tabulate

from benchmarks.embedded_tables import halves_table
from benchmarks.methods import ABLATION, rows_of
from benchmarks.sweep import ROOT, Run, sweep, sweep_parser
from results.rows import harmonic
from support.command_line import run_command
from support.filled import fill_document

DATA = ("digits", "shapes")
SEEDS = (1, 2, 3)
RATES = (0.0025, 0.01, 0.02, 0.04)
#: INIT_STD and what start values are multiplied by: factors of N(0, 0.05) as in the paper, so that
#: an entry of a prompt starts at 0.0025; both factors at 0.14, so that it starts at 0.02; and what
#: this toolbox did before: U at 1 and V at 0.02
STARTS: dict[str, tuple[float, tuple[tuple[str, float], ...]]] = {
    "paper": (0.05, ()),
    "balanced": (0.02**0.5, ()),
    "U~N(0,1)": (1.0, (("text", 0.02), ("vision", 0.02))),
}
#: largest gradient norm; 0 is no clipping
CLIPS = (0.0, 1.0)
TEXT_PROMPTS = ("replace", "before", "added")
#: start, text prompt and clipping of the rows: all starts with the paper's text prompt, and the
#: other text prompts with the paper's start
ROWS = [(start, "replace", clip) for start, clip in product(STARTS, CLIPS)] + [
    ("paper", text, clip) for text, clip in product(TEXT_PROMPTS[1:], CLIPS)
]
#: a run has collapsed when its harmonic mean is so many points below that of zero-shot CLIP; less
#: is what few shots and other classes cost any method now and then
COLLAPSE = 5.0
#: rows that are looked at with more seeds: start, text prompt, clipping and learning rate
CLOSER = [
    ("paper", "replace", 0.0, 0.01),
    ("paper", "replace", 0.0, 0.0025),
    ("paper", "replace", 0.0, 0.02),
    ("paper", "replace", 1.0, 0.01),
    ("paper", "before", 0.0, 0.01),
]
#: steps of the paper's ablation below the whole method
STEPS = ("step4-drift-correction", "step3-consistency", "step2-low-rank")
MORE_SEEDS = (1, 2, 3, 4, 5)
#: what the embedded configs said when the study was made
MADE_WITH = ("MODEL.BACKBONE.NAME", "tiny", "OPTIM.MAX_EPOCH", 20, "OPTIM.LR", 0.01)
DOCUMENT = ROOT / "docs" / "mmlop_stability.md"


def label(start: str, text: str, clip: float, rate: float) -> str:
    """Return the name of a setting."""
    return f"{start} / {text} / clip {clip:g} / lr {rate:g}"


def grid(data: Sequence[str], seeds: Sequence[int], rates: Sequence[float]) -> list[Run]:
    """Return zero-shot CLIP and all settings of the study."""
    zero_shot = [Run("zero-shot", "ZeroshotCLIP", name, seeds[0]) for name in data]
    return zero_shot + [
        run_of(*row, rate, name, seed)
        for row, rate, name, seed in product(ROWS, rates, data, seeds)
    ]


def run_of(start: str, text: str, clip: float, rate: float, data: str, seed: int) -> Run:
    """Return a run of the study."""
    std, scales = STARTS[start]
    pairs = ("TRAINER.MMLOP.INIT_STD", std, "TRAINER.MMLOP.TEXT_PROMPT", text)
    pairs += ("OPTIM.CLIP_GRAD_NORM", clip, "OPTIM.LR", rate)
    return Run(label(start, text, clip, rate), "MMLoP", data, seed, pairs, scales=scales)


def closer() -> list[Run]:
    """Return the runs of some settings, and of the ablation's steps, with more seeds."""
    runs = [run_of(*s, name, seed) for s, name, seed in product(CLOSER, DATA, MORE_SEEDS)]
    return runs + [
        Run(step, "MMLoP", name, seed, ABLATION["steps"][step])
        for step, name, seed in product(STEPS, DATA, MORE_SEEDS)
    ]


def study(runs: Iterable[Run]) -> list[Run]:
    """Return runs with the backbone and the epochs that the study was made with."""
    return [replace(run, pairs=(*MADE_WITH, *run.pairs)) for run in runs]


def table(results: Sequence[dict], rates: Sequence[float]) -> str:
    """Return rows of start, text prompt and clipping, columns of learning rates, for one data set.

    A cell has mean and population deviation of the harmonic mean, the worst seed and collapses.
    """
    zero_shot = next(r["hm"] for r in results if r["label"] == "zero-shot")
    lines = []
    for start, text, clip in ROWS:
        line = {"start": start, "text prompt": text, "clipping": f"{clip:g}"}
        for rate in rates:
            name = label(start, text, clip, rate)
            values = [r["hm"] for r in results if r["label"] == name]
            collapsed = sum(value < zero_shot - COLLAPSE for value in values)
            cell = f"{fmean(values):.1f} ± {pstdev(values):.1f} ({min(values):.1f}"
            line[f"lr {rate:g}"] = cell + (f", {collapsed} collapsed)" if collapsed else ")")
        lines.append(line)
    table = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
    return f"Zero-shot: {zero_shot:.1f}\n\n{table}\n"


def average_table(results: Sequence[dict], rates: Sequence[float]) -> str:
    """Return the same rows and columns with the harmonic mean of the averages over data sets."""
    lines = []
    for start, text, clip in ROWS:
        line = {"start": start, "text prompt": text, "clipping": f"{clip:g}"}
        for rate in rates:
            name = label(start, text, clip, rate)
            mine = [r for r in results if r["label"] == name]
            values = []
            for seed in sorted({r["seed"] for r in mine}):
                of_seed = [r for r in mine if r["seed"] == seed]
                base, new = (fmean(r[part] for r in of_seed) for part in ("base", "new"))
                values.append(harmonic(base, new))
            line[f"lr {rate:g}"] = f"{fmean(values):.1f} ± {pstdev(values):.1f}"
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return sweep_parser(__doc__)


def act(args: argparse.Namespace) -> None:
    """Run what is missing of the grid and fill the document."""
    out = ROOT / "benchmarks" / "results" / "mmlop_stability.jsonl"
    results = sweep(study(grid(DATA, SEEDS, RATES)), out, args.root, args.jobs)
    parts = {name: table([r for r in results if r["data"] == name], RATES) for name in DATA}
    more = sweep(study(closer()), out, args.root, args.jobs)
    parts |= {
        "average": average_table(results, RATES),
        "closer": halves_table(
            rows_of(more), DATA, [*(label(*setting) for setting in CLOSER), *STEPS]
        ),
    }
    fill_document(DOCUMENT, parts)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
