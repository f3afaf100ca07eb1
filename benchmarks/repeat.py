"""The same sweep again, and with other numbers of loader workers and of processes.

``python -m benchmarks.repeat``: every run of a small sweep on the embedded data is done once more
by the same command, once with one and once with two worker processes of the loader, and shared by
two and by three processes (``torchrun``), each time in an empty folder. What a run leaves is
compared with what it left first: all tensors and values of its checkpoints, its record but for
times, places and the keys that do not change what is trained (``dassl.config.runtime``), and its
kept predictions, if there are some.

Prints the table of ``docs/reliability.md`` and writes ``benchmarks/results/repeat.json``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor

from benchmarks.names import method_name
from dassl.config import is_runtime_key, leaves
from dassl.data.image_cache import CACHE_VARIABLE
from dassl.utils import load_checkpoint, read_json, write_json
from support.command_line import add_traceback, positive, run_command
from support.filled import fill_document

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "repeat.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
#: name -> loader workers, processes; the first one is what the others are compared with
VARIANTS = {
    "first": (0, 1),
    "the same command": (0, 1),
    "1 loader worker": (1, 1),
    "2 loader workers": (2, 1),
    "2 processes": (0, 2),
    "3 processes": (0, 3),
}
#: what of a record is the same whenever and wherever a run is done
RECORDED = ("method", "seed", "shots", "images_per_class", "data", "result", "parameters", "config")


@dataclass
class Comparison:
    """What comparing two folders of one run gave.

    Attributes:
        files: number of files compared.
        values: number of tensors and plain values compared.
        different: names of those that are not equal to the last digit.
        error: largest difference in a tensor of the learner, relative to its largest value.
        accuracy: difference of the accuracies, in percent points.
    """

    files: int = 0
    values: int = 0
    different: list[str] = field(default_factory=list)
    error: float = 0.0
    accuracy: float = 0.0


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and plain values in nested mappings and sequences, with their names."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(part, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from flat(part, f"{name}/{index}")
    else:
        yield name, value


def content(folder: Path) -> dict[str, dict[str, Any]]:
    """Return file -> name -> value of what a run left that has to be the same each time."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("model*.pth.tar*")):
        checkpoint = load_checkpoint(str(path))
        checkpoint["meta"] = {**checkpoint["meta"], "config": None}  # the record has it
        checkpoint["trainer_state"].pop("history", None)  # when and where it was trained
        found[str(path.relative_to(folder))] = dict(flat(checkpoint, ""))
    record = read_json(str(folder / "result.json"))
    kept = {key: record[key] for key in RECORDED}
    kept["config"] = {k: v for k, v in leaves(record["config"]) if not is_runtime_key(k)}
    found["result.json"] = dict(flat(kept, ""))
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = load_file(path)
    return found


def equal(one: Any, other: Any) -> bool:
    """Return whether two values are the same to the last digit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def compare(first: Path, second: Path) -> Comparison:
    """Compare what two runs left in their folders.

    Raises:
        OSError, ValueError: a run left no record, or a file that cannot be read.
    """
    one, other = content(first), content(second)
    result = Comparison(len(one), sum(map(len, one.values())))
    for file in sorted(one.keys() | other.keys()):
        ours, theirs = one.get(file, {}), other.get(file, {})
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in ours or name not in theirs or not equal(ours[name], theirs[name]):
                result.different.append(f"{file}{name}")
        for name in ours.keys() & theirs.keys():
            if name.startswith("/state_dict/"):
                scale = max(float(ours[name].abs().max()), 1e-12)
                gap = float((ours[name] - theirs[name]).abs().max())
                result.error = max(result.error, gap / scale)
    of_both = (found["result.json"]["/result/metrics/accuracy"] for found in (one, other))
    result.accuracy = abs(next(of_both) - next(of_both))
    return result


def command(method: str, data: str, seed: int, folder: Path, variant: str) -> list[str]:
    """Return the command of a run, in the folder of its variant."""
    workers, processes = VARIANTS[variant]
    program = [sys.executable]
    if processes > 1:
        program += ["-m", "torch.distributed.run", "--standalone"]
        program += ["--nproc_per_node", str(processes)]
    output = run_folder(folder, variant, method, data, seed)
    return [
        *(*program, "train.py", "--quiet", "--root", str(folder / "data"), "--seed", str(seed)),
        *("--trainer", method, "--output-dir", str(output)),
        *("--dataset-config-file", f"configs/datasets/{data}.yaml"),
        *("--config-file", f"configs/trainers/{method}/tiny.yaml"),
        *("DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False"),
        *("INPUT.SEEDED_VIEWS", "True", "DATALOADER.NUM_WORKERS", str(workers)),
    ]


def run_folder(folder: Path, variant: str, method: str, data: str, seed: int) -> Path:
    """Return the output folder of a run."""
    return folder / variant.replace(" ", "-") / f"{method}-{data}-seed{seed}"


def sweep(runs: Sequence[tuple[str, str, int]], folder: Path) -> list[dict[str, Any]]:
    """Do all runs in all variants.

    Args:
        runs: method, data set and seed of each.
        folder: takes data, caches and results.

    Returns:
        for every variant but the first its name, and the sums and maxima of its comparisons.
    """
    caches = {CACHE_VARIABLE: str(folder / "images"), "CLIP_CACHE": str(folder / "clip")}
    env = os.environ | {"OMP_NUM_THREADS": "1"} | caches
    rows = []
    for variant in VARIANTS:
        found = []
        for run in runs:
            subprocess.run(command(*run, folder, variant), cwd=ROOT, env=env, check=True)
            folders = [run_folder(folder, name, *run) for name in ("first", variant)]
            found.append(compare(*folders))
        if variant != "first":
            rows.append(
                {
                    "variant": variant,
                    "runs": len(runs),
                    "files": sum(each.files for each in found),
                    "values": sum(each.values for each in found),
                    "different": sum(len(each.different) for each in found),
                    "largest error": max(each.error for each in found),
                    "largest accuracy difference": max(each.accuracy for each in found),
                }
            )
    return rows


def table(result: Mapping[str, Any]) -> str:
    """Lay the results out as Markdown."""
    rows = [
        [row["variant"], row["runs"], row["files"], f"{row['values']:,}", f"{row['different']:,}"]
        + [f"{row['largest error']:.1e}" if row["largest error"] else "0"]
        + [f"{row['largest accuracy difference']:.2f}"]
        for row in result["rows"]
    ]
    header = ["compared with the first run", "runs", "files", "tensors and values", "not equal"]
    header += ["learner, largest relative difference", "accuracy, largest difference"]
    return tabulate(rows, header, "github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--methods",
        nargs="+",
        type=method_name,
        default=["CoOp", "MMLoP"],
        help="names of trainers",
    )
    add("--datasets", nargs="+", default=["digits"], help="digits, shapes or both")
    add("--seeds", nargs="+", type=positive, default=[1, 2], help="seeds")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Do the sweeps, keep what was found, fill the document."""
    runs = [(m, d, s) for m in args.methods for d in args.datasets for s in args.seeds]
    with tempfile.TemporaryDirectory() as folder:
        rows = sweep(runs, Path(folder))
    result = {"runs": runs, "torch": str(torch.__version__), "rows": rows}
    write_json(result, str(OUT))
    print(table(result))
    fill_document(DOCUMENT, {"repeat": table(result)})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
