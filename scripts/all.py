"""A whole protocol of one or more methods over data sets and seeds, with one progress bar.

    python scripts/all.py METHOD [DATASETS] [SEEDS] [KEY VALUE ...]

Lists are words in quotes or with commas between them: "coop mmlop", digits,shapes, "1 2 3". Every
run is one call of run.sh, which skips finished runs and continues unfinished ones. A run that fails
is named at the end with its log, and the others go on.

From the environment, besides what run.sh reads:
  PROTOCOL  {protocols}
  SHOTS     fewshot takes several, all among them (default: 1 2 4 8 16)
  JOBS      runs at once (default: 1)
  TOGETHER  1: one run trains all seeds of a setting in one process (docs/performance.md)

If DATA is set, DATASETS defaults to the eleven of the benchmark (xd: those that are not the source;
dg: ImageNet's variants), else to the two that come with the repository (xd: from digits to shapes).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import protocols  # noqa: E402  found by the line above
from scripts.run import FINISHED, NOTE, absolute_folders, run_script  # noqa: E402
from support.command_line import INTERRUPTED  # noqa: E402
from support.command_line import run as run_command  # noqa: E402

# What is not of the standard library is imported inside the functions: --help is given without.

# The words of one call of run.sh: method, protocol and arguments.
Call = tuple[str, ...]


@dataclass
class Chain:
    """A training, and the calls that test what it trained, if any."""

    train: Call
    tests: list[Call] = field(default_factory=list)

    def __len__(self) -> int:
        return 1 + len(self.tests)


def words(text: str) -> list[str]:
    """Return the words of a list given as one argument, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def numbers(text: str, kind: str, or_word: str = "") -> list[str]:
    """Return the words of a list of whole numbers, and of the word ``or_word``.

    Raises:
        ValueError: for other words.
    """
    for word in words(text):
        if word != or_word and not re.fullmatch("[0-9]+", word):
            also = f" or {or_word!r}" if or_word else ""
            raise ValueError(f"{kind} must be whole numbers{also}, not {word!r}")
    return words(text)


def plan(args: argparse.Namespace, env: dict[str, str]) -> list[Chain]:
    """Return all calls that the command line asks for.

    Args:
        args: the parsed command line.
        env: the environment; SOURCE is set in it where xd has no data sets but the embedded ones.

    Raises:
        ValueError: for a protocol, method, data set or number that cannot be.
    """
    from scripts.methods import DATASETS, find_method, one_of, stems

    every = protocols.by_name()
    protocol = every[one_of(env.get("PROTOCOL") or next(iter(every)), every, "PROTOCOL")]
    train = protocol.training
    there, datasets = stems(DATASETS), words(args.datasets)
    papers = bool(protocol.only or env.get("DATA"))
    if protocol.transfers and not (datasets or papers or env.get("SOURCE")):
        env["SOURCE"] = protocols.EMBEDDED[0]
    source = one_of(env.get("SOURCE") or protocols.SOURCE, there, "SOURCE")
    if not datasets:
        datasets = list(protocol.targets(source) if papers else protocols.EMBEDDED)
        datasets = [name for name in datasets if not (protocol.transfers and name == source)]
    for name in datasets:
        one_of(name, protocol.datasets if protocol.only else there, "data set")
    seeds = numbers(args.seeds, "SEEDS") or ["1", "2", "3"]
    if one_of(env.get("TOGETHER") or "0", ("0", "1"), "TOGETHER") == "1":
        seeds = [",".join(seeds)]
    shots = [""]
    if "SHOTS" in train.arguments:
        shots = numbers(env.get("SHOTS") or "1 2 4 8 16", "SHOTS", "all")

    methods = [find_method(name).name for name in words(args.methods)]
    sources = [source] if protocol.transfers else datasets
    chains = []
    for method, trained_on, number, seed in itertools.product(methods, sources, shots, seeds):
        rest = (*filter(None, [number]), seed, *args.opts)
        tests = [
            (method, test.name, dataset, *rest)
            for test in protocol.tests
            for dataset in (datasets if protocol.transfers else [trained_on])
        ]
        chains.append(Chain((method, train.name, trained_on, *rest), tests))
    return chains


def title(call: Call) -> str:
    """Return a call's method, protocol, data set and numbers."""
    method, name, dataset, *rest = call
    if "SHOTS" in protocols.find_script(name)[1].arguments:
        return f"{method} {name} {dataset} {rest[0]} shots seed {rest[1]}"
    return f"{method} {name} {dataset} seed {rest[0]}"


def progress(log: Path) -> str:
    """Return the epoch that a run's log has come to, as in " (epoch 3/20)", or nothing."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        if epochs := re.findall(r"epoch \[(\d+/\d+)\]", file.read().decode(errors="replace")):
            return f" (epoch {epochs[-1]})"
    return ""


class Runner:
    """Makes calls of run.sh, several at a time, each with a log of its own.

    Args:
        logs: folder for the logs.
        env: environment of the calls.
        total: number of calls that are to come.
    """

    def __init__(self, logs: Path, env: dict[str, str], total: int) -> None:
        from tqdm import tqdm

        self.logs, self.env = logs, env | {"PYTHONUNBUFFERED": "1"}  # for `progress`
        self.bar = tqdm(total=total, unit="run", dynamic_ncols=True)
        self.lock = threading.RLock()
        #: what runs, with its title and its log
        self.processes: dict[subprocess.Popen, tuple[str, Path]] = {}
        self.stopped = False
        self.counts = {"done": 0, "finished before": 0, "failed": 0, "not run": 0}
        #: what to say of the calls that failed
        self.failures: list[str] = []

    def count(self, outcome: str, number: int = 1) -> None:
        with self.lock:
            self.counts[outcome] += number
            self.bar.update(number)

    def summary(self) -> str:
        """Return the number of runs by outcome, as text."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)

    def show(self) -> None:
        """Show on the bar what has ended and what runs."""
        with self.lock:
            running = list(self.processes.values())
            shown = [self.summary()] if self.summary() else []
            if running:
                name, log = running[0]
                shown.append(f"running {name}{progress(log)}")
            if len(running) > 1:
                shown.append(f"{len(running) - 1} more")
            self.bar.set_postfix_str(", ".join(shown))

    def call(self, call: Call) -> bool:
        """Make a call; return whether it succeeded."""
        settings = [self.env[key] for key in ("CFG", "TAG", "SOURCE") if self.env.get(key)]
        log = self.logs / f"{'-'.join([*title(call).split(), *settings])}.txt"
        with open(log, "w") as out:
            with self.lock:
                if self.stopped:
                    return False
                process = subprocess.Popen(
                    ["bash", str(ROOT / "scripts" / "run.sh"), *call],
                    env=self.env,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # to be stopped with all that it started
                )
                self.processes[process] = title(call), log
            self.show()
            status = process.wait()
        with self.lock:
            del self.processes[process]
            if self.stopped:
                return False
        lines = log.read_text(errors="replace").splitlines()
        if status:
            reason = next((line.strip() for line in lines[::-1] if line.strip()), "")
            self.failures.append(f"{title(call)} failed: {reason} (status {status}, log {log})")
            self.count("failed")
        else:
            before = any(line.startswith(FINISHED) for line in lines) and all(
                line.startswith((FINISHED, NOTE)) for line in lines
            )
            self.count("finished before" if before else "done")
        return not status

    def chain(self, chain: Chain) -> None:
        """Make the calls of a chain in turn: without the training there is nothing to test."""
        if not self.call(chain.train):
            if not self.stopped:
                self.count("not run", len(chain.tests))
            return
        for test in chain.tests:
            self.call(test)

    def stop(self) -> None:
        """End what is still running, with the processes it started."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)

    def run(self, chains: list[Chain], jobs: int) -> None:
        """Make all calls, ``jobs`` at a time.

        Raises:
            KeyboardInterrupt, SystemExit: the user or the system stops it; so are the calls.
        """
        every = 1 if sys.stderr.isatty() else 30  # seconds
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(self.chain, chain) for chain in chains}
            try:
                while waiting:
                    done, waiting = wait(waiting, every, FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    self.show()
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is being done
                raise
            finally:
                self.stop()
                pool.shutdown(cancel_futures=True)
                self.bar.close()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    lines = [f"{p.name}: {p.title.lower()}" for p in protocols.PROTOCOLS]
    lines[0] += " (default)"
    parser = argparse.ArgumentParser(
        prog="all.sh",
        description=__doc__.format(protocols=("\n" + " " * 12).join(lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("methods", metavar="METHOD", help="folder of scripts/, or several")
    add("datasets", metavar="DATASETS", nargs="?", default="", help="files of configs/datasets/")
    add("seeds", metavar="SEEDS", nargs="?", default="", help="default: 1 2 3")
    add("opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="for all runs, as in run.sh")
    return parser


def sweep(args: argparse.Namespace) -> int:
    """Make all calls that the command line asks for, or with DRY_RUN=1 print their commands.

    Args:
        args: the parsed command line.

    Returns:
        Exit status: 0, 1 when a run failed, 128 + n when it was stopped by signal n.

    Raises:
        ValueError: for arguments that cannot work.
    """
    env = absolute_folders({"PYTHON": sys.executable, **os.environ})
    chains = plan(args, env)
    jobs = env.get("JOBS") or "1"
    if not re.fullmatch("[1-9][0-9]*", jobs):
        raise ValueError(f"JOBS must be a whole number from 1 on, not {jobs!r}")
    if env.get("DRY_RUN") == "1":
        for chain in chains:
            for method, script, *rest in (chain.train, *chain.tests):
                run_script(method, script, rest, env)
        return 0
    data = env.get("DATA")
    if data and not Path(data).is_dir():
        raise ValueError(f"DATA is {data}, which is no folder: correct it, or create it")

    logs = Path(env.get("OUTPUT") or ROOT / "output") / "all"
    logs.mkdir(parents=True, exist_ok=True)
    # Python would otherwise end here at once, and leave the runs behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    runner = Runner(logs, env, sum(map(len, chains)))
    try:
        runner.run(chains, int(jobs))
    except (KeyboardInterrupt, SystemExit) as stop:
        ended = runner.summary() or "no run had ended"
        print(
            f"stopped ({ended}): finished runs and the last checkpoints of the others are kept "
            f"below {logs.parent}; the same command goes on from there",
            file=sys.stderr,
        )
        return int(stop.code or 0) if isinstance(stop, SystemExit) else INTERRUPTED
    print(runner.summary(), flush=True)
    for message in runner.failures:
        print(f"error: {message}", file=sys.stderr)
    return 1 if runner.failures else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: that of :func:`sweep`, or 2 for arguments that cannot work.
    """
    return run_command(lambda: sweep(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
