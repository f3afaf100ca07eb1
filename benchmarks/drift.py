"""What uniform drift correction does on the embedded data: ``python -m benchmarks.drift``.

Trains MMLoP with a U of each encoder's own, without and with the correction (steps 3 and 4 of the
paper's ablation), measures how far the text features have left the frozen ones and how much of that
all classes share, and tests either model without and with the correction. Results are kept in
``benchmarks/results/drift.json`` and fill a table of ``docs/benchmark.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean

from benchmarks.embedded_tables import lay_out, shown
from benchmarks.methods import ABLATION, ABLATION_DATA, DOCUMENT, OURS, SEEDS
from benchmarks.sweep import ROOT, Run, config_of, sweep_parser
from results.differences import paired
from support.command_line import run_command
from support.files import write_text
from support.filled import fill_document

STEPS = {"without": "step3-consistency", "with": "step4-drift-correction"}
OUT = ROOT / "benchmarks" / "results" / "drift.json"


def measure(step: str, data: str, seed: int, root: Path) -> dict[str, object]:
    """Train a step; measure its drift on base and new classes, and both ways of testing.

    Args:
        step: key of STEPS.
        data: the data set.
        seed: of the run.
        root: data root.

    Returns:
        For base and new: ``drift``, the mean norm of what the unit text features moved by;
        ``shared``, the part of its square that is the mean over classes, in percent; and accuracies
        in percent, tested ``without`` and ``with`` the correction.
    """
    import torch

    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed
    from trainers.mmlop import LowRankPromptLearner

    torch.set_num_threads(1)
    run = Run(STEPS[step], OURS, data, seed, ABLATION["steps"][STEPS[step]])
    found: dict[str, object] = {"trained": step, "data": data, "seed": seed}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for classes in ("base", "new"):
            cfg = config_of(run, data, classes, str(root), folder)
            set_random_seed(seed)
            trainer = build_trainer(cfg)
            if classes == "base":
                trainer.train()
            else:
                trainer.load_model(folder, epoch=cfg.OPTIM.MAX_EPOCH)
            model = trainer.model
            learner = model.learner
            assert isinstance(learner, LowRankPromptLearner)
            for tested in STEPS:
                learner.drift_correction = tested == "with"
                trainer.set_model_mode("train")  # text features are computed anew
                trainer.set_model_mode("eval")
                found[f"{classes} {tested}"] = trainer.test()
                if tested == "without":
                    with torch.no_grad():
                        drift = model.text_features() - model.frozen_text_features()
                    squares = drift.square().sum(dim=1)
                    shared = drift.mean(dim=0).square().sum() / squares.mean()
                    found[f"{classes} drift"] = float(squares.sqrt().mean())
                    found[f"{classes} shared"] = 100.0 * float(shared)
    return found


def drift_table(results: Sequence[dict[str, object]]) -> str:
    """Lay out means over the seeds, and what testing with the correction changes."""
    lines = []
    for data in ABLATION_DATA:
        for step in STEPS:
            mine = [r for r in results if (r["data"], r["trained"]) == (data, step)]
            line = {"data set": data, "trained": f"{step} the correction"}
            for classes in ("base", "new"):
                drift, shared = (
                    fmean(r[f"{classes} {key}"] for r in mine) for key in ("drift", "shared")
                )
                accuracy = fmean(r[f"{classes} without"] for r in mine)
                change = [r[f"{classes} with"] - r[f"{classes} without"] for r in mine]
                line[f"{classes}: drift"] = f"{drift:.2f}"
                line[f"{classes}: shared"] = f"{shared:.0f} %"
                line[f"{classes}: tested without"] = f"{accuracy:.1f}"
                line[f"{classes}: with, change"] = shown(paired(change, "seed"))
            lines.append(line)
    return lay_out(lines)


def act(args: argparse.Namespace) -> None:
    """Measure, keep the results and fill the document."""
    os.environ["OMP_NUM_THREADS"] = "1"
    runs = [(step, data, s) for data in ABLATION_DATA for s in SEEDS for step in STEPS]
    with ProcessPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(measure, *run, args.root) for run in runs]
        results = [future.result() for future in futures]
    write_text(json.dumps(results, indent=1) + "\n", OUT)
    fill_document(DOCUMENT, {"drift": drift_table(results)})
    print(drift_table(results))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(sweep_parser(__doc__), act, argv)


if __name__ == "__main__":
    sys.exit(main())
