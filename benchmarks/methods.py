"""All methods side by side on the embedded data: ``python -m benchmarks.methods``.

Runs what ``benchmarks/results/methods.jsonl`` lacks and fills the tables and figures of
``docs/benchmark.md`` and the table of averages in ``README.md``: base-to-new on every embedded
data set, domain generalisation and transfer from the symbols, few-shot curves on the letters, and
the tables of MMLoP's ablation on both; every method with its shipped ``tiny.yaml``. ``--left`` says
what is still to be run. The tables of a part are filled when all of its runs are there.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from benchmarks.embedded_tables import (
    OURS,
    PAPER_ROWS,
    ablation_table,
    against_table,
    averages_table,
    halves_table,
    paper_shots_table,
    save_standing,
    separation_table,
    shots_against_table,
    shots_table,
    standing_table,
    transfer_table,
)
from benchmarks.sweep import ROOT, Run, missing, results_of, sweep, sweep_parser
from protocols import VARIANTS_OF, source_of
from results.plots import save_plots
from results.published.figures import read_published
from results.record import RunResult
from results.rows import Row, make_rows
from results.runs import TITLES, Method, Runs, Scores
from scripts.ablation import read_tables
from scripts.methods import method_names, read_method
from support.command_line import run_command
from support.filled import fill_document

SEEDS = (1, 2, 3, 4, 5)
#: the data sets, those first that the ablation is run on
DATA = ("letters", "symbols", "digits", "shapes")
ABLATION_DATA = DATA[:2]
FEW_SHOT_DATA = "letters"
SOURCE = "symbols"
VARIANTS = VARIANTS_OF[SOURCE]
OTHERS = tuple(data for data in DATA if data != SOURCE)
TRAINED = [method for method in map(read_method, method_names()) if method.trains]
#: all that have something to train
METHODS = tuple(dict.fromkeys(method.trainer for method in TRAINED))
#: those of them that fit the classes of their training only
OF_THEIR_CLASSES = tuple(m.trainer for m in TRAINED if "base2new" not in m.protocols)
#: the curves of the paper, and those of the classifiers
FEW_SHOT_METHODS = ("CoOp", "MaPLe", "PromptSRC", OURS, *OF_THEIR_CLASSES)
SHOTS = (1, 2, 4, 8, 16)
ZERO_SHOT = "ZeroshotCLIP"

#: the tables of MMLoP's paper: table -> run -> config pairs
ABLATION = read_tables(OURS)
OUT = ROOT / "benchmarks" / "results" / "methods.jsonl"
DOCUMENT = ROOT / "docs" / "benchmark.md"
README = ROOT / "README.md"


def base_to_new_runs() -> list[Run]:
    """Return runs of every method that has the protocol; zero-shot CLIP needs one seed."""
    zero_shot = [Run(ZERO_SHOT, ZERO_SHOT, data, SEEDS[0]) for data in DATA]
    methods = [method for method in METHODS if method not in OF_THEIR_CLASSES]
    return zero_shot + [Run(m, m, data, s) for s in SEEDS for data in DATA for m in methods]


def ablation_runs() -> list[Run]:
    """Return runs of MMLoP with parts changed; unchanged it is among the base-to-new runs."""
    changed = {run: pairs for runs in ABLATION.values() for run, pairs in runs.items() if pairs}
    return [
        Run(run, OURS, data, seed, pairs)
        for data in ABLATION_DATA
        for seed in SEEDS
        for run, pairs in changed.items()
    ]


def few_shot_runs() -> list[Run]:
    """Return runs of some methods with 1 to 16 images per class."""
    return [
        Run(m, m, FEW_SHOT_DATA, seed, shots=shots, protocol="fewshot")
        for seed in SEEDS
        for shots in SHOTS
        for m in FEW_SHOT_METHODS
    ]


def transfer_runs() -> list[Run]:
    """Return runs on all classes of the source that are tested on its variants and other data."""
    return [
        Run(m, m, SOURCE, s, protocol="transfer", targets=targets_of(m))
        for s in SEEDS
        for m in METHODS
    ]


def targets_of(method: str) -> tuple[str, ...]:
    """Return the data sets that a method's transfer is tested on."""
    return VARIANTS if method in OF_THEIR_CLASSES else (*VARIANTS, *OTHERS)


def zero_shot_runs() -> list[Run]:
    """Return runs of zero-shot CLIP on all classes of everything."""
    return [
        Run(ZERO_SHOT, ZERO_SHOT, data, SEEDS[0], protocol="fewshot") for data in (*DATA, *VARIANTS)
    ]


#: what ``--only`` names -> its runs, in the order in which they are made
PARTS = {
    "zeroshot": zero_shot_runs,
    "base2new": base_to_new_runs,
    "ablation": ablation_runs,
    "transfer": transfer_runs,
    "fewshot": few_shot_runs,
}


def rows_of(results: Sequence[dict]) -> list[Row]:
    """Average the results of runs over seeds, and over data sets."""
    scores: Scores = {p: defaultdict(lambda: defaultdict(Runs)) for p in TITLES}

    def add(protocol: str, data: str, method: Method, result: dict, values: dict) -> None:
        runs = scores[protocol][data][method]
        for metric, value in values.items():
            runs.add(metric, result["seed"], RunResult(OUT, value, {}), print)
        runs.facts = {
            "MODEL.BACKBONE.NAME": {result["config"]},
            "parameters": {str(result["parameters"])},
            "zero_shot": {str(result["method"] == ZERO_SHOT)},
        }

    for result in results:
        zero_shot = result["method"] == ZERO_SHOT
        if result["protocol"] == "base2new":
            method = Method(result["label"], result["config"], result["shots"])
            values = {part: result[part] for part in ("base", "new")}
            add("base2new", result["data"], method, result, values)
            continue
        method = Method(result["label"], result["config"], 0 if zero_shot else result["shots"])
        add("fewshot", result["data"], method, result, {"accuracy": result["all"]})
        for target, accuracy in result.get("on", {}).items():
            protocol = "dg" if source_of(target) == result["data"] else "cross"
            moved = Method(result["label"], result["config"], result["shots"], result["data"])
            add(protocol, target, moved, result, {"accuracy": accuracy})

    def note(line: str) -> None:
        if not line.startswith("not averaged"):  # a part of some data sets only
            print(line)

    return make_rows(scores, ci95=False, note=note)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = sweep_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", default=list(PARTS))
    parser.add_argument("--left", action="store_true", help="say what is to be run, and stop")
    return parser


def say_what_is_left(parts: Iterable[str]) -> set[str]:
    """Print how many runs of parts are missing, by method; return the parts that are whole."""
    whole = set()
    for part in parts:
        runs = PARTS[part]()
        left = Counter(run.label for run in missing(runs, OUT))
        said = "; left: " + ", ".join(f"{label} {n}" for label, n in left.items()) if left else ""
        print(f"{part}: {len(runs) - left.total()} of {len(runs)} runs are there{said}")
        if not left:
            whole.add(part)
    return whole


def fill(whole: set[str]) -> None:
    """Fill the tables of parts, draw the figures."""
    there = {part: results_of(PARTS[part](), OUT) if part in whole else [] for part in PARTS}
    compared, published = rows_of(there["base2new"]), read_published()
    curves = rows_of([*there["zeroshot"], *there["fewshot"]])
    curves = [row for row in curves if (row.protocol, row.dataset) == ("fewshot", FEW_SHOT_DATA)]
    folder, tables = ROOT / "docs" / "figures", {}
    if "base2new" in whole:
        tables |= {
            "standing": standing_table(compared),
            "against": against_table(compared, DATA),
            "separation": separation_table(compared, DATA, "PromptSRC", "CoOp"),
            "base2new": halves_table(compared, DATA),
        }
        fill_document(README, {"averages": averages_table(compared)})
        save_standing(compared, folder / "standing.png")
        save_plots(compared + (curves if "fewshot" in whole else []), folder, print)
    if {"base2new", "ablation"} <= whole:
        unchanged = next(run for run, pairs in ABLATION["steps"].items() if not pairs)
        same = [
            {**result, "label": unchanged}
            for result in there["base2new"]
            if result["label"] == OURS and result["data"] in ABLATION_DATA
        ]
        ablated = rows_of([*there["ablation"], *same])
        for table in PAPER_ROWS:
            tables[table] = ablation_table(ablated, table, ABLATION_DATA, published)
    if {"zeroshot", "transfer"} <= whole:
        moved = rows_of([*there["zeroshot"], *there["transfer"]])
        for name, protocol in (("dg", "dg"), ("xd", "cross")):
            tables[name] = transfer_table(moved, protocol, published)
    if {"zeroshot", "fewshot"} <= whole:
        tables["fewshot"] = shots_table(curves, FEW_SHOT_DATA)
        tables["fewshot-against"] = shots_against_table(curves, FEW_SHOT_DATA)
        tables["fewshot-paper"] = paper_shots_table(published, FEW_SHOT_METHODS)
    fill_document(DOCUMENT, tables)


def act(args: argparse.Namespace) -> None:
    """Run what is missing, then fill the documents."""
    if args.left:
        say_what_is_left(args.only)
        return
    for part in args.only:
        sweep(PARTS[part](), OUT, args.root, args.jobs)
    fill(say_what_is_left(PARTS))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
