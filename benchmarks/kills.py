"""What kills cost: ``python -m benchmarks.kills --kills 50``.

Runs of ``train.py`` on the embedded digits, in processes of their own, are killed and started again
with the same command till they finish. What they saved last (learner, optimiser, schedule, all
random states) is compared, bit for bit, with that of an uninterrupted run. The signals are SIGKILL,
SIGTERM, SIGINT and SIGUSR1, in turn, at random times of a run; and SIGKILL at chosen moments:

* ``data cache``: while the images' cache is written;
* ``first epoch``: in a step of the first epoch;
* ``rename``: when a state or a checkpoint is written, and not renamed yet;
* ``evaluation``: in the test after the training.

Every method that trains takes its turn, and seeds trained together. To have many starts in a short
time, processes are forked from one that has imported the modules; all else is as typed on the
command line. The counts replace ``benchmarks/results/kills.json`` and fill the table of
``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.methods import METHODS
from dassl.data.image_cache import CACHE_VARIABLE
from dassl.utils import read_json, write_json
from support.command_line import (
    INTERRUPTED,
    UNFINISHED,
    add_traceback,
    output_file,
    positive,
    run_command,
)
from support.filled import fill_document

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "kills.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
SEEDS = (1, 2)
TOGETHER = "MMLoP, two seeds together"
RANDOM_TIME = "random time"
#: moment -> largest number of calls of what it breaks off that pass before
MOMENTS = {"data cache": 0, "first epoch": 3, "rename": 4, "evaluation": 1}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1")
#: exit status of a process that ended as asked; those of the others are the negative signals
ASKED = {"SIGTERM": UNFINISHED, "SIGUSR1": UNFINISHED, "SIGINT": INTERRUPTED}
#: of a run: four steps in each of three epochs
PAIRS = ("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "3")
PAIRS += ("DATALOADER.TRAIN_X.BATCH_SIZE", "5", "TRAIN.CHECKPOINT_FREQ", "2")
#: starts after which a run that does not finish counts as lost
MOST_STARTS = 20


def command(what: str, folder: Path, save_minutes: float) -> list[str]:
    """Return the words after ``train.py`` of a run whose data and output are in a folder.

    Args:
        what: method, or TOGETHER.
        folder: of the run.
        save_minutes: between its states.
    """
    method = what.partition(",")[0]
    seeds = ["--seed", "1"]
    if what == TOGETHER:
        seeds = ["--seeds", ",".join(map(str, SEEDS))]
    words = [*seeds, "--root", str(folder / "data"), "--trainer", method, "--quiet"]
    words += ["--dataset-config-file", "configs/datasets/digits.yaml"]
    words += ["--config-file", f"configs/trainers/{method}/tiny.yaml"]
    words += ["--output-dir", str(folder / "out" / "seed{seed}"), *PAIRS]
    words += ["TRAIN.SAVE_MINUTES", str(save_minutes), "USE_CUDA", "False"]
    return words if what == TOGETHER else [word.replace("{seed}", "1") for word in words]


def run_process(
    words: Sequence[str], folder: str, moment: str | None = None, passes: int = 0
) -> None:
    """Do what ``train.py`` does, in this process, and exit as it does.

    Args:
        words: its words.
        folder: takes caches and what is printed.
        moment: at which the process kills itself; None for none.
        passes: calls that pass before.
    """
    import train

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {CACHE_VARIABLE: f"{folder}/images", "CLIP_CACHE": f"{folder}/clip"}
    os.chdir(ROOT)
    with open(f"{folder}/printed.txt", "a", buffering=1) as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        if moment is not None:
            break_off(moment, passes)
        os._exit(train.main(list(words)))


def break_off(moment: str, passes: int) -> None:
    """Have this process kill itself at a moment, after some calls that pass."""
    from dassl.data.image_cache import PixelFile
    from dassl.engine import SimpleTrainer
    from dassl.engine.trainer import EpochLog
    from support import files

    left = itertools.count(passes, -1)

    def die() -> None:
        if next(left) <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(function: Callable, is_meant: Callable[..., bool]) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            if is_meant(*args):
                die()
            return function(*args, **options)

        return call

    if moment == "data cache":
        write = PixelFile.write

        def write_half(path: str | Path, arrays: Any) -> None:
            write(path, itertools.islice(arrays, 3))
            die()

        PixelFile.write = staticmethod(write_half)  # type: ignore[method-assign]
    elif moment == "first epoch":
        EpochLog.step_done = before(EpochLog.step_done, lambda *_: True)  # type: ignore
    elif moment == "rename":
        wanted = ("model", "unfinished", "checkpoint", "result")

        def is_of_the_run(path: str | Path, *_: Any) -> bool:
            return os.path.basename(path).startswith(wanted)

        files.os = _Replacing(before(os.replace, is_of_the_run))  # type: ignore[assignment]
    else:
        infer = SimpleTrainer.parse_batch_test
        SimpleTrainer.parse_batch_test = before(infer, lambda *_: True)  # type: ignore


class _Replacing:
    """Module ``os`` with another ``replace``.

    Args:
        replace: what takes its place.
    """

    def __init__(self, replace: Callable) -> None:
        self.replace = replace

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Starter:
    """Starts processes that have the modules imported."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.preloaded"])

    def start(self, *args: Any) -> Any:
        """Start :func:`run_process` with these arguments."""
        process = self.context.Process(target=run_process, args=args)
        process.start()
        return process


def saved_last(folder: Path) -> dict[str, Any]:
    """Return seed -> what its finished run in a folder saved last, without its history."""
    import torch

    found = {}
    for path in sorted(folder.glob("out/seed*/*/model.pth.tar-3")):
        content = torch.load(path, weights_only=True)
        content["trainer_state"].pop("history", None)
        content.pop("meta")
        found[path.parts[-3]] = content
    return found


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two trees of plain data and tensors are equal to the bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return bool(one == other)


def left_over(folder: Path) -> list[str]:
    """Return what a finished run should not have left: states and temporary files."""
    files = [str(path.relative_to(folder)) for path in (folder / "out").rglob("*")]
    return [name for name in files if ".tmp" in name or "unfinished" in name]


def finish(starter: Starter, words: list[str], folder: Path) -> tuple[int, int]:
    """Start a run till it finishes; return its last exit status, and the number of starts."""
    status, starts = UNFINISHED, 0
    while status in ASKED.values() and starts < MOST_STARTS:
        process = starter.start(words, str(folder))
        process.join()
        status, starts = process.exitcode, starts + 1
    return status, starts


def try_kill(
    starter: Starter, what: str, folder: Path, seconds: float, rng: random.Random, kill: str
) -> dict[str, Any]:
    """Start a run in a fresh folder, break it off once, and start it again till it finishes.

    Args:
        starter: of processes.
        what: as for :func:`command`.
        folder: of the run; data and caches may be there.
        seconds: that an uninterrupted run takes.
        rng: chooses the time.
        kill: signal and RANDOM_TIME, or SIGKILL and a moment, with a comma between.
    """
    name, _, moment = kill.partition(", ")
    words = command(what, folder, save_minutes=rng.choice([1e-9, 0.0]))
    row: dict[str, Any] = {"run": what, "signal": name, "moment": moment}
    started = time.perf_counter()
    if moment == RANDOM_TIME:
        process = starter.start(words, str(folder))
        process.join(rng.uniform(0, 0.8 * seconds))
        if process.is_alive():
            os.kill(process.pid, getattr(signal, name))
    else:
        passes = rng.randint(0, MOMENTS[moment])
        process = starter.start(words, str(folder), moment, passes)
    process.join(60 + 20 * seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return row | {"hit": True, "status": None, "problem": "did not end"}
    row |= {"seconds": round(time.perf_counter() - started, 2), "status": process.exitcode}
    # a signal may come before the process receives any, or when all is done
    row["hit"] = process.exitcode != 0
    row["states"] = sum("unfinished" in path.name for path in (folder / "out").rglob("*"))
    status, row["starts"] = finish(starter, words, folder)
    if status != 0:
        row["problem"] = f"exit status {status}"
    elif left := left_over(folder):
        row["problem"] = f"left {', '.join(left)}"
    return row


def measure(
    kills: int, runs: Sequence[str], seed: int, jobs: int, folder: Path
) -> list[dict[str, Any]]:
    """Kill runs so many times; runs that a signal comes too late for do not count.

    Args:
        kills: number of kills.
        runs: methods, and ``TOGETHER``, in turn.
        seed: of what is chosen at random.
        jobs: runs at the same time.
        folder: takes data, results and caches.
    """
    starter = Starter()
    kinds = [f"{name}, {RANDOM_TIME}" for name in SIGNALS] + [f"SIGKILL, {m}" for m in MOMENTS]

    def run_straight(what: str) -> tuple[dict[str, Any], float]:
        alone = folder / "straight" / what
        alone.mkdir(parents=True)
        began = time.perf_counter()
        status, _ = finish(starter, command(what, alone, save_minutes=5), alone)
        if status:
            raise RuntimeError((alone / "printed.txt").read_text())
        return saved_last(alone), time.perf_counter() - began

    def kill_one(number: int) -> dict[str, Any]:
        # shifted after every round, so that each run meets each kind
        shift = number // math.lcm(len(runs), len(kinds))
        what, kill = runs[number % len(runs)], kinds[(number + shift) % len(kinds)]
        saved, seconds = straight[what]
        killed = folder / f"kill{number}"
        killed.mkdir()
        # every other run finds data and caches; the others make them, and may be killed there
        if kill != "SIGKILL, data cache" and number // len(kinds) % 2:
            for part in ("data", "images", "clip"):
                if (made := folder / "straight" / what / part).is_dir():
                    shutil.copytree(made, killed / part)
        rng = random.Random(f"{seed} {number}")
        row = try_kill(starter, what, killed, seconds, rng, kill)
        row.setdefault("problem", None)
        row["differs"] = row["problem"] is None and not is_equal(saved_last(killed), saved)
        if row["problem"] or row["differs"]:
            killed.rename(folder.with_name(f"{folder.name}-problem{number}"))
        else:
            shutil.rmtree(killed)
        print(f"{number}: {row}", flush=True)
        return row

    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(jobs) as pool:
        straight = dict(zip(runs, pool.map(run_straight, runs), strict=True))
        while left := kills - sum(row["hit"] for row in rows):
            rows += pool.map(kill_one, range(len(rows), len(rows) + max(0, left)))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the counts as Markdown, by signal and moment."""
    hits = [row for row in rows if row["hit"]]
    kinds = dict.fromkeys((row["signal"], row["moment"]) for row in hits)
    lines = []
    for name, moment in [*sorted(kinds), ("all", "")]:
        mine = [r for r in hits if name == "all" or (r["signal"], r["moment"]) == (name, moment)]
        lost = [row for row in mine if row["problem"]]
        differing = [row for row in mine if row["differs"]]
        lines.append(
            {
                "signal": name,
                "moment": moment,
                "tried": len(mine),
                "survived": len(mine) - len(lost) - len(differing),
                "did not finish": len(lost),
                "other learner": len(differing),
            }
        )
    return tabulate(lines, "keys", "github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=positive, default=50)
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=[*METHODS, TOGETHER],
        help="those alone; keep other runs' counts",
    )
    parser.add_argument("--jobs", type=positive, default=2, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of what is chosen at random")
    parser.add_argument("--out", type=output_file, default=OUT)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> int:
    """Kill, keep, print, fill the document; return 1 if anything was lost."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        runs = args.runs or [*METHODS, TOGETHER]
        rows = measure(args.kills, runs, args.seed, args.jobs, Path(folder))
    if args.runs:
        rows = [row for row in read_json(str(args.out))["kills"] if row["run"] not in runs] + rows
    write_json({"seed": args.seed, "kills": rows}, str(args.out))
    kept = read_json(str(args.out))["kills"]
    print(table(kept))
    if args.out == OUT:
        fill_document(DOCUMENT, {"kills": table(kept)})
    return int(any(row["problem"] or row["differs"] for row in kept))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
