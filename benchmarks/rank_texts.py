"""What sharing out a class list saves the processes of a run: CPU seconds of a training step.

``torchrun --standalone --nproc_per_node 2 -m benchmarks.rank_texts``: in each process, a step with
all classes and one with its part of them in turn, after one of each that is not counted. A batch is
of four images in all, the CLIP a ViT-B/16 with random weights in float32, one thread per process.
Prints the table of ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.names import method_name
from support.command_line import add_traceback, positive, run_command


def measure(method: str, n_classes: int, backbone: Path, repeats: int) -> dict[bool, list[Any]]:
    """Return whether classes are shared out -> CPU and wall seconds of every step."""
    from adaptation.savings import rank_texts
    from benchmarks import speed
    from dassl.engine.ranks import shared_training
    from dassl.utils import ranks

    trainer = speed.build(method, n_classes, backbone, speed.PACKED)
    trainer.set_model_mode("train")
    n_images = speed.BATCH // ranks.world_size()
    batch = speed.random_batch(trainer, n_images)
    ranks.ShareOfStep.n_images = n_images
    seconds: dict[bool, list[Any]] = {False: [], True: []}
    with shared_training(trainer):
        for repeat in range(repeats + 1):
            for shared, found in seconds.items():
                rank_texts.LEAST_CLASSES = 1 if shared else n_classes + 1
                ranks.barrier()
                start = time.perf_counter()
                cpu = sum(speed.cpu_seconds(lambda: trainer.forward_backward(batch)))
                if repeat:
                    found.append((cpu, time.perf_counter() - start))
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--method", type=method_name, default="CoOp", help="name of the trainer")
    add("--classes", nargs="+", type=positive, default=[50, 200, 1000], help="numbers of classes")
    add("--repeats", type=positive, default=2, help="steps of each kind that count")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from benchmarks.speed import save_random_clip
    from dassl.utils import ranks

    torch.set_num_threads(1)
    ranks.silence_others()
    ranks.join(use_cuda=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder) / "clip.pt"
        save_random_clip(backbone)
        for n_classes in args.classes:
            found = measure(args.method, n_classes, backbone, args.repeats)
            middle = [
                [median(kind) for kind in zip(*steps, strict=True)] for steps in found.values()
            ]
            (cpu, wall), (shared_cpu, shared_wall) = middle
            row = [cpu, shared_cpu, cpu / shared_cpu, wall, shared_wall, wall / shared_wall]
            rows.append([n_classes, ranks.world_size(), *(f"{value:.2f}" for value in row)])
    header = ["classes", "processes", "CPU s, all in each", "CPU s, shared out", "ratio"]
    header += ["wall s, all in each", "wall s, shared out", "ratio"]
    print(tabulate(rows, header, "github", disable_numparse=True))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
