"""Training steps on a GPU: ``python -m benchmarks.gpu``. It has not been run on one yet.

Milliseconds per step of 4 images on a ViT-B/16 with random weights, by wall clock with the device
waited for before and after each series of steps, copy of the batch from pinned memory included; and
the memory that it takes: what tensors held at most, and what PyTorch keeps reserved for it, a
graph's own included:

* ``plain``: the computation of ``clip/plain.py``, one operation at a time;
* ``ours``: this toolbox, one operation at a time;
* ``ours, graph``: the same with ``OPTIM.CUDA_GRAPH``;
* ``ours, 4 seeds``: a step of each of four seeds that are trained together (``--seeds``).

The variants take turns. What is measured replaces ``benchmarks/results/gpu.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.names import method_name
from benchmarks.speed import BATCH, PACKED, PLAIN, build, random_batch, save_random_clip
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import write_json
from support.command_line import add_traceback, output_file, positive, run_command

OUT = Path(__file__).parent / "results" / "gpu.json"
GRAPH, SEEDS = "ours, graph", "ours, 4 seeds"
VARIANTS = (PLAIN, PACKED, GRAPH, SEEDS)
N_SEEDS = 4
#: what was aimed at on an H200 in bf16: milliseconds per step of PromptSRC's kind by classes
AIMS = {50: 2.5, 500: 5.0}
#: what the seeds together were meant to take at most, in steps of one
AIM_SEEDS = 1.5
#: steps in front of the first series, more than a graph takes to be captured
WARM_UP = 10


def prepare(
    method: str, n_classes: int, backbone: Path, variant: str, precision: str
) -> Callable[[], object]:
    """Return a training step on the GPU, or on the CPU where there is none."""
    import trainers  # noqa: F401  registers the methods
    from adaptation.seeds import Batch, joint_step

    node = TRAINER_REGISTRY.get(method).node
    pairs = ["USE_CUDA", True, f"TRAINER.{node}.PREC", precision]
    pairs += ["OPTIM.CUDA_GRAPH", variant == GRAPH]
    plain_or_ours = PLAIN if variant == PLAIN else PACKED
    runs = []
    for _ in range(N_SEEDS if variant == SEEDS else 1):
        trainer = build(method, n_classes, backbone, plain_or_ours, *pairs)
        trainer.set_model_mode("train")
        if runs:
            trainer.model.share_frozen(runs[0].trainer.model)
        log = SimpleNamespace(step_done=lambda summary: None)
        runs.append(SimpleNamespace(trainer=trainer, own_output=nullcontext, log=log))
    trainer = runs[0].trainer
    batch = random_batch(trainer, BATCH)
    if trainer.device.type == "cuda":  # as a loader gives it
        batch = {key: value.pin_memory() for key, value in batch.items()}

    def joint() -> None:
        joint_step([(run, Batch(*run.trainer.parse_batch_train(batch), None)) for run in runs])

    return joint if variant == SEEDS else lambda: trainer.forward_backward(batch)


def milliseconds(step: Callable[[], object], steps: int) -> float:
    """Measure the wall-clock time per step of a series."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / steps


def memory_of(step: Callable[[], object]) -> dict[str, float | None]:
    """Measure the first steps' memory in 1e9 bytes: peak of tensors, and reserved afterwards."""
    if not torch.cuda.is_available():
        milliseconds(step, WARM_UP)
        return {"memory": None, "reserved": None}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    milliseconds(step, WARM_UP)
    peak = torch.cuda.max_memory_allocated()
    return {
        "memory": (peak - allocated) / 1e9,
        "reserved": (torch.cuda.memory_reserved() - reserved) / 1e9,
    }


def measure(
    method: str, n_classes: int, backbone: Path, precision: str, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """Return one record per variant, with the time of every series."""
    runs, held = {}, {}
    # CUDA's libraries take workspaces when they first run, which are nobody's own
    milliseconds(prepare(method, n_classes, backbone, PACKED, precision), 1)
    for variant in VARIANTS:
        runs[variant] = prepare(method, n_classes, backbone, variant, precision)
        held[variant] = memory_of(runs[variant])
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(repeats):
        for variant, step in runs.items():
            times[variant].append(milliseconds(step, steps))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return [
        {"method": method, "classes": n_classes, "variant": variant, "precision": precision}
        | {"ms": times[variant], **held[variant]}
        | {"device": device, "torch": torch.__version__}
        for variant in VARIANTS
    ]


def table(records: list[dict[str, Any]]) -> str:
    """Lay out the records as Markdown; the ratio is that to the plain variant."""
    times = {(r["method"], r["classes"], r["variant"]): median(r["ms"]) for r in records}
    rows = []
    for record in records:
        key = (record["method"], record["classes"])
        slow, fast = times[(*key, PLAIN)], times[(*key, record["variant"])]
        row = {key: record[key] for key in ("method", "classes", "variant", "precision")}
        row |= {"ms per step": f"{fast:.2f}", "plain / this": f"{slow / fast:.2f}"}
        for name, field in (("tensors, GB", "memory"), ("reserved, GB", "reserved")):
            row[name] = "" if record[field] is None else f"{record[field]:.2f}"
        row["aim, ms"] = ""
        if record["variant"] == GRAPH and record["method"] == "PromptSRC":
            row["aim, ms"] = AIMS.get(record["classes"], "")
        elif record["variant"] == SEEDS:
            row["aim, ms"] = f"{AIM_SEEDS * times[(*key, PACKED)]:.2f}"
        rows.append(row)
    return tabulate(rows, "keys", "github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", type=method_name, default=["PromptSRC", "MMLoP", "CoOp"]
    )
    parser.add_argument("--classes", nargs="+", type=positive, default=[5, 50, 500])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=positive, default=100, help="of a series")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--backbone", type=Path, help="checkpoint; a random ViT-B/16 if not given")
    parser.add_argument("--out", type=output_file, default=OUT)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, keep, print."""
    torch.backends.cudnn.benchmark = torch.cuda.is_available()  # as train.py has it
    if not torch.cuda.is_available():
        print("Note: no CUDA device, so this times the CPU, and no graph is captured")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = args.backbone or Path(folder, "random_vit_b16.pt")
        if args.backbone is None:
            save_random_clip(backbone)
        for method in args.methods:
            for n_classes in args.classes:
                settings = (args.precision, args.steps, args.repeats)
                records += measure(method, n_classes, backbone, *settings)
                write_json(records, str(args.out))
    print(table(records))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
