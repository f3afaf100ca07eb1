"""All methods side by side on the embedded data: ``python -m benchmarks.methods``.

Runs what ``benchmarks/results/methods.jsonl`` lacks and fills the tables and figures of
``docs/benchmark.md``: base-to-new and MMLoP's ablation on both data sets, few-shot learning of some
methods on the digits, every method with its shipped ``tiny.yaml``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.sweep import ROOT, Run, sweep
from dassl.utils import replacing
from results.plots import save_plots
from results.rows import Row, make_rows
from results.runs import TITLES, Method, Runs, Scores
from results.tables import cell, render_tables

DATA = ("digits", "shapes")
SEEDS = (1, 2, 3)
METHODS = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MPL", "LoRVP", "MMLoP")
FEW_SHOT_METHODS = ("CoOp", "PromptSRC", "MMLoP")
SHOTS = (1, 2, 4, 8, 16)


def off(*parts: str) -> tuple[object, ...]:
    """Config pairs that switch parts of MMLoP off."""
    return tuple(word for part in parts for word in (f"TRAINER.MMLOP.{part}", False))


#: steps of the paper's ablation; the last one is MMLoP as it is shipped
ABLATION: dict[str, tuple[object, ...]] = {
    "1 full prompts (IVLP)": off("LOW_RANK", "CONSISTENCY", "DRIFT_CORRECTION"),
    "2 + low rank": off("SHARED_U", "CONSISTENCY", "DRIFT_CORRECTION"),
    "3 + consistency": off("SHARED_U", "DRIFT_CORRECTION"),
    "4 + drift correction": off("SHARED_U"),
    "5 + shared U = MMLoP": (),
}
RANKS = {f"5 with rank {rank}": ("TRAINER.MMLOP.RANK", rank) for rank in (2, 4)}
DOCUMENT = ROOT / "docs" / "benchmark.md"


def base_to_new_runs() -> list[Run]:
    """Every method on both data sets; zero-shot CLIP is the same for every seed."""
    zero_shot = [Run("ZeroshotCLIP", "ZeroshotCLIP", data, SEEDS[0]) for data in DATA]
    return zero_shot + [Run(m, m, data, s) for data in DATA for m in METHODS for s in SEEDS]


def ablation_runs() -> list[Run]:
    """MMLoP without some of its parts, and with higher ranks on the digits.

    The whole of it is among the base-to-new runs.
    """
    steps = {label: pairs for label, pairs in ABLATION.items() if pairs}
    return [
        Run(label, "MMLoP", data, seed, pairs)
        for data, settings in zip(DATA, (steps | RANKS, steps), strict=True)
        for label, pairs in settings.items()
        for seed in SEEDS
    ]


def few_shot_runs() -> list[Run]:
    """Some methods with 1 to 16 images per class of the digits, tested on all classes."""
    zero_shot = Run("ZeroshotCLIP", "ZeroshotCLIP", DATA[0], SEEDS[0], protocol="fewshot")
    return [zero_shot] + [
        Run(m, m, DATA[0], seed, shots=shots, protocol="fewshot")
        for m in FEW_SHOT_METHODS
        for shots in SHOTS
        for seed in SEEDS
    ]


def rows_of(results: Sequence[dict]) -> list[Row]:
    """Means over seeds, and averages over data sets, of the results of runs."""
    scores: Scores = {p: defaultdict(lambda: defaultdict(Runs)) for p in TITLES}
    for result in results:
        few_shot = result["protocol"] == "fewshot"
        shots = 0 if few_shot and not result["parameters"] else result["shots"]
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


def shots_table(rows: Sequence[Row]) -> str:
    """Few-shot accuracies as a table, a method per line and a column per number of shots."""
    cells: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row.method.shots):
        line = cells.setdefault(row.method.trainer, {"method": row.method.trainer})
        line[f"{row.method.shots} shots"] = cell(row, "accuracy")
    columns = dict.fromkeys(key for line in cells.values() for key in line)
    lines = [{key: line.get(key, "-") for key in columns} for line in cells.values()]
    return tabulate(lines, headers="keys", tablefmt="github") + "\n"


def fill(text: str, parts: dict[str, str]) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->`` in a document.

    Raises:
        ValueError: the document has no such place.
    """
    for name, part in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, n = re.subn(pattern, lambda m, part=part: m[1] + part + m[2], text, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"the document needs one place for {name}, has {n}")
    return text


def main() -> None:
    """Run what is missing, fill the document, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="data root")
    args = parser.parse_args()
    out = ROOT / "benchmarks" / "results" / "methods.jsonl"

    def done(runs: list[Run]) -> list[dict]:
        return sweep(runs, out, args.root, args.jobs)

    methods, few_shot, ablation = map(done, (base_to_new_runs(), few_shot_runs(), ablation_runs()))
    whole = list(ABLATION)[[*ABLATION.values()].index(())]
    ablation += [{**r, "label": whole} for r in methods if r["label"] == "MMLoP"]
    parts = {
        "base2new": rows_of(methods),
        "fewshot": rows_of(few_shot),
        "ablation": rows_of(ablation),
    }
    tables = {name: render_tables(rows, "github", "accuracy") for name, rows in parts.items()}
    tables["fewshot"] = shots_table(parts["fewshot"])
    filled = fill(DOCUMENT.read_text("utf-8"), tables)
    with replacing(DOCUMENT) as partial:
        Path(partial).write_text(filled, "utf-8")
    save_plots(parts["base2new"] + parts["fewshot"], ROOT / "docs" / "figures", print)


if __name__ == "__main__":
    main()
