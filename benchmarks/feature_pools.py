"""What methods on frozen features cost beside encoding: ``python -m benchmarks.feature_pools``.

Every method trains and tests on the base classes of the embedded digits, with a random ViT and its
shipped settings, on one thread. Measured is the time from the lists of images to the result, over
the time in it that images are read and encoded for: CPU time, which other processes of the machine
change little, and wall time. A method that encodes several views of an image, or a new one in every
epoch, is compared with the encoding of these views ("ratio"), and with that of each image a single
time ("ratio to one view"). What is measured replaces ``benchmarks/results/feature_pools.json``.

The defaults are the strict ones. Features of a ViT-B/32 are as wide as those of a ViT-B/16, so that
what a method does with them takes as long, and an image is encoded in a fourth of the time; and one
image per class leaves the number of steps as it is, or makes batches small.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import train
from adaptation.classifier import PromptedCLIP
from adaptation.features import FeatureTrainer
from benchmarks.names import method_name
from benchmarks.parameters import VIT_B16
from benchmarks.speed import save_random_clip
from dassl.data.dataset_wrapper import DatasetWrapper
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed, write_json
from support.command_line import add_traceback, output_file, positive, run_command

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "feature_pools.json"
#: methods that step on images, although their learner sees features only: config for few shots
ON_IMAGES = {"CLIPAdapter": "vit_b16_ep50", "TaskRes": "vit_b16_ep100"}


def methods() -> list[str]:
    """Return the methods that train on features, and ``ON_IMAGES``."""
    kinds = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    pools = [name for name, kind in kinds.items() if issubclass(kind, FeatureTrainer)]
    return sorted([*pools, *ON_IMAGES])


def clocks() -> tuple[float, float]:
    """Return the process's CPU seconds, and seconds on the wall."""
    return time.process_time(), time.perf_counter()


class Spent:
    """CPU and wall seconds that images are read and encoded for, and which they were."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        self.views, self.files = 0, set[str]()

    def timed(self, call: Callable) -> Callable:
        """Return the call, with its time counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = clocks()
            found = call(*args, **kwargs)
            cpu_end, wall_end = clocks()
            self.cpu, self.wall = self.cpu + cpu_end - cpu, self.wall + wall_end - wall
            return found

        return counted

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is read and encoded in this context."""
        read, encode = DatasetWrapper.__getitem__, PromptedCLIP.encode_image
        timed_read, timed_encode = self.timed(read), self.timed(encode)

        def counted_read(dataset: DatasetWrapper, index: int) -> Any:
            self.files.add(dataset.data_source[index].impath)
            return timed_read(dataset, index)

        def counted_encode(model: PromptedCLIP, image: torch.Tensor, *args: Any) -> Any:
            self.views += len(image)
            return timed_encode(model, image, *args)

        DatasetWrapper.__getitem__ = counted_read  # type: ignore[method-assign]
        PromptedCLIP.encode_image = counted_encode  # type: ignore[method-assign]
        try:
            yield
        finally:
            DatasetWrapper.__getitem__ = read  # type: ignore[method-assign]
            PromptedCLIP.encode_image = encode  # type: ignore[method-assign]


def measure(
    method: str, backbone: Path, root: Path, shots: int, folder: Path, epochs: int | None = None
) -> dict[str, Any]:
    """Train and test, and count the images that are encoded and the seconds for that."""
    file = ROOT / f"configs/trainers/{method}/{ON_IMAGES.get(method, 'vit_b16')}.yaml"
    words = ["--trainer", method, "--seed", "1", "--root", str(root), "--backbone", str(backbone)]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")]
    words += ["--config-file", str(file), "--output-dir", str(folder)]
    words += ["DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", "base"]
    words += ["USE_CUDA", "False", "VERBOSE", "False", "DATALOADER.NUM_WORKERS", "0"]
    words += [f"TRAINER.{TRAINER_REGISTRY.get(method).node}.PREC", "fp32"]
    words += [] if epochs is None else ["OPTIM.MAX_EPOCH", str(epochs)]
    spent = Spent()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cfg = train.setup_cfg(train.build_parser().parse_args(words))
        set_random_seed(1)
        trainer = build_trainer(cfg)
        with spent.counting():
            cpu, wall = clocks()
            trainer.train()
            cpu, wall = (end - start for end, start in zip(clocks(), (cpu, wall), strict=True))
    return {
        "method": method,
        "training images": len(trainer.dm.dataset.train_x),
        "epochs": trainer.max_epoch,
        "images": len(spent.files),
        "views encoded": spent.views,
        "CPU seconds": round(cpu, 2),
        "CPU seconds encoding": round(spent.cpu, 2),
        "ratio": round(cpu / spent.cpu, 3),
        "ratio of wall time": round(wall / spent.wall, 3),
        "ratio to one view": round(cpu / spent.cpu * spent.views / len(spent.files), 2),
        "torch": torch.__version__,
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--methods", nargs="+", type=method_name, default=methods(), help="registry names"
    )
    parser.add_argument("--patch", type=positive, default=32, help="side of the ViT's patches")
    parser.add_argument("--shots", type=positive, default=1, help="images per class")
    parser.add_argument("--epochs", type=positive, help="of training (default: as shipped)")
    parser.add_argument("--repeats", type=positive, default=1, help="runs of every method")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="data root")
    parser.add_argument("--out", type=output_file, default=OUT, metavar="FILE", help="results")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, write the file, print the table."""
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as name:
        backbone = Path(name, "random.pt")
        sizes = VIT_B16 | {"vision_patch_size": args.patch}
        save_random_clip(backbone, tuple(sizes.values()))
        for number in range(args.repeats):
            for method in args.methods:
                folder = Path(name, f"{method}{number}")
                words = (args.root, args.shots, folder, args.epochs)
                found = measure(method, backbone, *words)
                results.append({"backbone": f"random ViT-B/{args.patch}"} | found)
                write_json(results, str(args.out))
    print(tabulate(results, headers="keys", tablefmt="github"))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
