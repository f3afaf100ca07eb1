"""What a user waits for: start-up, first step, a small run: ``python -m benchmarks.whole_run``.

Every measurement is a process of its own, as typed on the command line, on one thread:

* ``python train.py --help``, beside ``python -c "import torch"``;
* from the start of ``train.py`` to the first line of the log that a step prints;
* a whole base-classes run on the embedded digits, training and test, with the fast paths (caches
  that an earlier run filled), with them and empty caches, and with all of them switched off.

Wall-clock and CPU seconds, the variants in turn. What is measured replaces
``benchmarks/results/whole_run.json`` and fills the table of ``benchmarks/results/whole_run.md``.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.names import method_name
from dassl.data.image_cache import CACHE_VARIABLE
from dassl.utils import read_json, write_json
from support.command_line import add_traceback, output_file, positive, run_command
from support.filled import fill_document

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "whole_run.json"
DOCUMENT = OUT.with_suffix(".md")
METHODS = ("CoOp", "MaPLe", "PromptSRC", "MMLoP")
#: config keys that switch every fast path off
ALL_OFF = ("MODEL.FAST_ENCODERS", "False", "DATALOADER.CACHE", "none")
ALL_OFF += ("MODEL.TEACHER_CACHE_MB", "0")
#: how a whole run goes: further config pairs, and whether the caches are emptied before
VARIANTS = {
    "everything off": (ALL_OFF, True),
    "fast, caches empty": ((), True),
    "fast, caches filled": ((), False),
}


def command(method: str, folder: Path, *pairs: str) -> list[str]:
    """Return the command line of a run on the base classes of the embedded digits."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    words = [sys.executable, "train.py", "--root", str(folder / "data"), "--seed", "1"]
    words += ["--trainer", method, "--dataset-config-file", "configs/datasets/digits.yaml"]
    words += ["--config-file", f"configs/trainers/{method}/tiny.yaml"]
    words += ["--output-dir", str(folder / "out"), "DATASET.SUBSAMPLE_CLASSES", "base"]
    return [*words, *pairs]


def timed(words: list[str], env: dict[str, str], until: str | None = None) -> dict[str, float]:
    """Measure the seconds that a process takes, or that pass until it prints a line.

    Args:
        words: its command line.
        env: its environment.
        until: the start of the line; the process is then ended, and CPU time is not known.

    Raises:
        RuntimeError: it failed, or ended without that line.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        output = ""
        for line in process.stdout:
            output += line
            if until is not None and line.startswith(until):
                seconds = time.perf_counter() - start
                process.kill()
                return {"wall": seconds}
    if process.returncode or until is not None:
        raise RuntimeError(f"{' '.join(words)}\n{output}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": seconds,
        "cpu": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
    }


def measure(methods: tuple[str, ...], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Return all measurements; ``folder`` takes data, results and caches."""
    caches = {CACHE_VARIABLE: str(folder / "images"), "CLIP_CACHE": str(folder / "clip")}
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | caches
    starts = {
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
        "python train.py --help": [sys.executable, "train.py", "--help"],
    }
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}

    def add(what: str, variant: str, seconds: dict[str, float]) -> None:
        runs.setdefault((what, variant), []).append(seconds)

    timed(command(methods[0], folder), env)  # renders the images, compiles the modules
    for _ in range(repeats):
        for name, words in starts.items():
            add(name, "", timed(words, env))
        first = command(methods[0], folder, "TRAIN.PRINT_FREQ", "1")
        add(f"train.py, {methods[0]}, to the first step", "", timed(first, env, "epoch [1/"))
        for method in methods:
            for variant, (pairs, empty) in VARIANTS.items():
                if empty:
                    for cache in caches.values():
                        shutil.rmtree(cache, ignore_errors=True)
                seconds = timed(command(method, folder, *pairs), env)
                add(f"whole run, {method}", variant, seconds)
    return [
        {"what": what, "variant": variant, "load": round(os.getloadavg()[0], 1)}
        | {kind: [round(one[kind], 2) for one in found] for kind in found[0]}
        for (what, variant), found in runs.items()
    ]


def table(results: list[dict[str, Any]]) -> str:
    """Lay out the results as Markdown, with ratios to everything switched off in the same turn."""
    rows = []
    plain = {r["what"]: r for r in results if r["variant"] == "everything off"}
    for result in results:
        row = {"": result["what"], "variant": result["variant"]}
        row["wall-clock, s"] = f"{median(result['wall']):.2f}"
        row["CPU, s"] = f"{median(result['cpu']):.2f}" if "cpu" in result else ""
        row["off / this, CPU"] = ""
        if result["what"] in plain and result["variant"] != "everything off":
            pairs = zip(plain[result["what"]]["cpu"], result["cpu"], strict=True)
            ratios = [a / b for a, b in pairs]
            row["off / this, CPU"] = (
                f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            )
        rows.append(row)
    return tabulate(rows, "keys", "github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", type=method_name, default=METHODS)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--out", type=output_file, default=OUT)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, keep, print, fill the document."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(measure(tuple(args.methods), args.repeats, Path(folder)), str(args.out))
    print(table(read_json(str(args.out))))
    if args.out == OUT:
        fill_document(DOCUMENT, {"whole run": table(read_json(str(OUT)))})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
