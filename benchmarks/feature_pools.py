"""What methods on feature pools cost beside encoding: ``python -m benchmarks.feature_pools``.

Every method trains and tests on the base classes of the embedded digits, with a random ViT-B/16 and
its shipped number of epochs, on one thread. Measured is the CPU time from the lists of images to
the result, over the time in it that images are read and encoded for, each view once. What is
measured replaces ``benchmarks/results/feature_pools.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import train
from adaptation import features
from benchmarks.names import method_name
from benchmarks.speed import save_random_clip
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed, write_json
from support.command_line import add_traceback, output_file, positive, run_command

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "feature_pools.json"


def methods() -> list[str]:
    """Return the methods that train on features."""
    kinds = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return [name for name, kind in kinds.items() if issubclass(kind, features.FeatureTrainer)]


def measure(method: str, backbone: Path, root: Path, shots: int, folder: Path) -> dict[str, Any]:
    """Train and test, and count the images that are encoded and the seconds for that."""
    words = ["--trainer", method, "--seed", "1", "--root", str(root), "--backbone", str(backbone)]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")]
    words += ["--config-file", str(ROOT / f"configs/trainers/{method}/vit_b16.yaml")]
    words += ["--output-dir", str(folder / method), "DATASET.NUM_SHOTS", str(shots)]
    words += ["DATASET.SUBSAMPLE_CLASSES", "base", "USE_CUDA", "False", "VERBOSE", "False"]
    words += [f"TRAINER.{TRAINER_REGISTRY.get(method).node}.PREC", "fp32"]
    words += ["DATALOADER.NUM_WORKERS", "0"]
    spent, encoded, encode = [0.0], [0], features.encode_batches

    def timed(*args: Any) -> Any:
        start = time.process_time()
        found = encode(*args)
        spent[0] += time.process_time() - start
        encoded[0] += len(found[1])
        return found

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cfg = train.setup_cfg(train.build_parser().parse_args(words))
        set_random_seed(1)
        trainer = build_trainer(cfg)
        features.encode_batches = timed
        try:
            start = time.process_time()
            trainer.train()
            seconds = time.process_time() - start
        finally:
            features.encode_batches = encode
    return {
        "method": method,
        "training images": len(trainer.dm.dataset.train_x),
        "epochs": trainer.max_epoch,
        "views encoded": encoded[0],
        "seconds": round(seconds, 2),
        "seconds encoding": round(spent[0], 2),
        "ratio": round(seconds / spent[0], 3),
        "torch": torch.__version__,
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--methods", nargs="+", type=method_name, default=methods(), help="registry names"
    )
    parser.add_argument("--shots", type=positive, default=16, help="images per class")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="data root")
    parser.add_argument("--out", type=output_file, default=OUT, metavar="FILE", help="results")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, write the file, print the table."""
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random_clip(folder / "random.pt")
        for method in args.methods:
            results.append(measure(method, folder / "random.pt", args.root, args.shots, folder))
            write_json(results, str(args.out))
            print(tabulate(results[-1:], headers="keys", tablefmt="github"))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
