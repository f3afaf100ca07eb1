"""Two sweeps into one folder, killed with their runs at random times: is a run lost, or done twice?

    python -m benchmarks.sweep_kills [--runs 24] [--kills 20] [--pause 2] [--seed 0]

The runs are trainings of CoOp on the embedded CLIP and a few images of noise, each a real call of
``train.py``. Two sweeps of all of them go on at once. Again and again one process is drawn among
the sweeps, their calls of run.sh and those of ``train.py`` and gets SIGKILL, or SIGTERM; a sweep
that ended so is started again. After the last kill they end as they like. Then a line of JSON has

* runs and kills, by what was killed, and starts of ``train.py``;
* ``lost``: runs without a result;
* ``done_twice``: starts of a run that had ended, or that another process was doing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.sweep.runner import FAILURES
from support.command_line import add_traceback, output_file, positive, run_command
from support.files import write_json

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "sweep_kills.json"
# In the place of the interpreter: notes each start of train.py, with what is in its folder, and
# whether a process that was started in there before still runs.
NOTING = """#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
if words[0] == "train.py":
    folder = words[words.index("--output-dir") + 1]
    starts = pathlib.Path({starts!r})
    before = [json.loads(line) for line in starts.read_text().splitlines()]
    def runs(pid):
        try:
            return folder in pathlib.Path("/proc", str(pid), "cmdline").read_text().split("\\0")
        except OSError:
            return False
    note = {{"folder": folder, "pid": os.getpid()}}
    note["ended"] = pathlib.Path(folder, "result.json").exists()
    note["others"] = [e["pid"] for e in before if e["folder"] == folder and runs(e["pid"])]
    with open(starts, "a") as file:
        file.write(json.dumps(note) + "\\n")
os.execv({python!r}, [{python!r}, *words])
"""


def write_images(root: Path) -> None:
    """Write a folder of images for each of three classes."""
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 60, (32, 32, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def processes_of(output: Path) -> dict[str, list[int]]:
    """Return the processes of the sweeps into a folder: kind -> ids."""
    found: dict[str, list[int]] = {"sweep": [], "run.sh": [], "train.py": []}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"OUTPUT={output}\0".encode() not in (entry / "environ").read_bytes():
                continue
            words = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        kinds = {"scripts/all.py": "sweep", "scripts/run.py": "run.sh", "train.py": "train.py"}
        for word in words[1:3]:
            if word in kinds:
                found[kinds[word]].append(int(entry.name))
    return found


def measure(runs: int, kills: int, pause: float, seed: int, folder: Path) -> dict[str, object]:
    """Do the sweeps.

    Args:
        runs: number of runs.
        kills: number of kills.
        pause: mean seconds between two.
        seed: of the draws.
        folder: where all is written.

    Returns:
        What was counted.
    """
    rng = random.Random(seed)
    data, output, starts = folder / "data", folder / "output", folder / "starts.jsonl"
    write_images(data)
    starts.touch()
    python = folder / "python"
    python.write_text(NOTING.format(python=sys.executable, starts=str(starts)))
    python.chmod(0o755)
    env = os.environ | {
        **{"DATA": str(data), "OUTPUT": str(output), "PYTHON": str(python), "CFG": "tiny"},
        **{"PROTOCOL": "fewshot", "SHOTS": "1", "JOBS": "2", "RETRIES": "100"},
        **{"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DASSL_CACHE": str(folder / "c")},
    }
    seeds = " ".join(map(str, range(1, runs + 1)))
    words = ["bash", str(ROOT / "scripts/all.sh"), "coop", "imagefolder", seeds]
    words += ["OPTIM.MAX_EPOCH", "3", "TRAIN.CHECKPOINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "0"]

    def start() -> subprocess.Popen:
        log = open(folder / "sweeps.txt", "a")
        with log:
            return subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)

    sweeps, killed = [start(), start()], Counter[str]()
    while any(sweep.poll() is None for sweep in sweeps) or sum(killed.values()) < kills:
        time.sleep(rng.uniform(0, 2 * pause) if sum(killed.values()) < kills else 0.5)
        if sum(killed.values()) < kills:
            there = {kind: ids for kind, ids in processes_of(output).items() if ids}
            if there:
                kind = rng.choice(sorted(there))
                how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(there[kind]), how)
                    killed[f"{kind} {how.name}"] += 1
            elif all(sweep.poll() == 0 for sweep in sweeps):
                break  # all runs ended before the last kill
        sweeps = [sweep if sweep.poll() in (None, 0) else start() for sweep in sweeps]
    ended = [
        path
        for path in output.rglob("result.json")
        if json.loads(path.read_text())["result"] is not None
    ]
    notes = [json.loads(line) for line in starts.read_text().splitlines()]
    failures = output / "all" / FAILURES
    return {
        "runs": runs,
        "kills": sum(killed.values()),
        "killed": dict(sorted(killed.items())),
        "starts": len(notes),
        "attempts_noted": len(failures.read_text().splitlines()) if failures.exists() else 0,
        "lost": runs - len(ended),
        "done_twice": sum(note["ended"] or bool(note["others"]) for note in notes),
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=positive, default=24)
    parser.add_argument("--kills", type=positive, default=20)
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=output_file, default=OUT)
    parser.add_argument("--keep", metavar="DIR", help="write all into this folder, and keep it")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> int:
    """Measure and print; the exit status is 1 if a run was lost or done twice."""
    with contextlib.ExitStack() as stack:
        folder = args.keep or stack.enter_context(tempfile.TemporaryDirectory())
        found = measure(args.runs, args.kills, args.pause, args.seed, Path(folder).absolute())
    print(json.dumps(found))
    write_json(found, args.out, indent=1)
    return 1 if found["lost"] or found["done_twice"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
