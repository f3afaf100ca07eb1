"""Seeds trained together and alone: ``python -m benchmarks.several_seeds``.

Measures an epoch on the embedded digits, with the loading of its images, of three seeds together
(``train.py --seeds``) and of each of them alone, in turn in one process on one thread, in CPU
seconds. It also counts the operations that PyTorch starts, which a device of many small kernels
waits for. What ``benchmarks/results/several_seeds.json`` lacks is measured and kept there, and all
of it fills the table of ``benchmarks/results/several_seeds.md``.

The backbones are the embedded one and a ViT-B/16 with random weights, on which the time does not
depend.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

import train
from adaptation.seeds import SeveralSeeds, run_epoch
from benchmarks.speed import save_random_clip
from dassl.data.image_cache import CACHE_VARIABLE
from dassl.engine import build_trainer
from dassl.utils import read_json, set_random_seed, write_json
from support.command_line import add_traceback, run_command
from support.filled import fill_document

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "several_seeds.json"
DOCUMENT = OUT.with_suffix(".md")
SEEDS = (1, 2, 3)
BATCH = 4
#: backbone, methods, and epochs that are counted
SETTINGS = (
    ("tiny", ("CoOp", "MaPLe", "PromptSRC", "MMLoP"), 7),
    ("ViT-B/16", ("CoOp", "MMLoP"), 3),
)


class Operations(TorchDispatchMode):
    """Counts operations that compute something, backward pass included."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += not func.is_view
        return func(*args, **(kwargs or {}))


def backbone_file(name: str, folder: Path) -> str:
    """Return the backbone as the command line names it; write a random one first."""
    if name == "tiny":
        return name
    path = folder / "random_vit_b16.pt"
    if not path.exists():
        save_random_clip(path)
    return str(path)


def build(method: str, backbone: str, folder: Path, seed: int) -> Any:
    """Build the trainer of one seed with one image per class, so that an epoch has few steps."""
    side = 32 if backbone == "tiny" else 224
    words = ["--trainer", method, "--seed", str(seed), "--root", str(folder / "data")]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")]
    words += ["--config-file", str(ROOT / f"configs/trainers/{method}/tiny.yaml")]
    words += ["--backbone", backbone, "DATASET.NUM_SHOTS", "1", "USE_CUDA", "False"]
    words += ["INPUT.SIZE", f"({side}, {side})", "DATALOADER.TRAIN_X.BATCH_SIZE", str(BATCH)]
    words += [
        "OPTIM.MAX_EPOCH",
        "1000",
        "MODEL.TEACHER_CACHE_MB",
        "0",
        "OUTPUT_DIR",
        str(folder / "out"),
        "VERBOSE",
        "False",
    ]
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    set_random_seed(seed)
    return build_trainer(cfg)


def measure(method: str, backbone: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Measure epochs of all seeds together and one after the other, and count operations."""
    with contextlib.redirect_stdout(io.StringIO()):
        makers = {seed: partial(build, method, backbone, folder, seed) for seed in SEEDS}
        together, alone = SeveralSeeds(makers), [make() for make in makers.values()]
        for trainer in alone:
            trainer.model.share_frozen(alone[0].model)

        def one_by_one(epoch: int) -> None:
            for trainer in alone:
                trainer.epoch = epoch
                trainer.run_epoch()

        variants: dict[str, Callable[[int], None]] = {
            "alone": one_by_one,
            "together": lambda epoch: run_epoch(together.runs, epoch),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        operations = {}
        for epoch in range(repeats + 1):
            for name, run in variants.items():
                start = time.process_time()
                run(epoch)
                if epoch:  # the first one computes what is kept
                    seconds[name].append(time.process_time() - start)
                elif backbone == "tiny":  # as deep as the other, so the number is the same
                    with Operations() as counter:
                        run(epoch)
                    operations[name] = counter.n
    steps = alone[0].num_batches
    return {
        "backbone": "tiny" if backbone == "tiny" else "ViT-B/16",
        "method": method,
        "seeds": len(SEEDS),
        "classes": alone[0].num_classes,
        "images per step": BATCH,
        "seconds per step": {k: [round(v / steps, 4) for v in vs] for k, vs in seconds.items()},
        "operations per step": {name: n / steps for name, n in operations.items()},
        "torch": torch.__version__,
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Lay out the results as Markdown; the ratio is that of each turn."""
    rows = []
    for result in results:
        alone, together = (result["seconds per step"][name] for name in ("alone", "together"))
        ratios = [a / t for a, t in zip(alone, together, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        operations = [round(n) for n in result["operations per step"].values()]
        rows.append(
            [result["backbone"], result["method"]]
            + [f"{statistics.median(times):.3f}" for times in (alone, together)]
            + [ratio, *(f"{n:,}" for n in operations)]
            + ([f"{operations[0] / operations[1]:.2f}"] if operations else [])
        )
    header = ["backbone", "method", "CPU s alone", "CPU s together", "ratio"]
    header += ["operations alone", "operations together", "ratio"]
    return tabulate(rows, header, "github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure what is missing, keep it, fill the document."""
    torch.set_num_threads(1)
    results = read_json(str(OUT)) if OUT.exists() else []
    known = {(result["backbone"], result["method"]) for result in results}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")
        for name, methods, repeats in SETTINGS:
            for method in methods:
                if (name, method) not in known:
                    backbone = backbone_file(name, Path(folder))
                    results.append(measure(method, backbone, repeats, Path(folder)))
                    write_json(results, str(OUT))
    fill_document(DOCUMENT, {"several seeds": table(results)})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
