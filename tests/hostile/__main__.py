"""Read hostile input by the thousand: ``python -m tests.hostile --inputs 2000 --out FILE.json``.

Every reader has a process of its own, which is started again where an input ends it. The table
says of each reader how many inputs were refused with one line of error, how many were read and
used, and what must not be: errors that nobody foresaw, inputs without an end, files written outside
of the target folder, payloads that ran. ``--reader NAME --input N`` shows one input again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.command_line import add_traceback, output_file, positive, run_command
from support.files import write_json
from support.filled import fill_document

from .judging import CLOCK_SECONDS, clean_environment, judge, warm_up
from .readers import READERS

#: the address space that a process may take besides what it has, in bytes
ADDRESSES = 6 << 30
#: where the figures of the documents are kept
OUT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "hostile.json"
#: the page that shows them
PAGE = OUT.parents[2] / "docs" / "reliability.md"
#: what must not be
BAD = ("tracebacks", "hangs", "outside", "executed", "too_much_memory")
COLUMNS = {
    "reader": "reader",
    "inputs": "inputs",
    "refused": "refused with one line",
    "read": "read",
    "tracebacks": "tracebacks",
    "hangs": "hangs or crashes",
    "outside": "writes outside",
    "executed": "payloads run",
    "memory_mb": "most memory, MB",
    "slowest_s": "slowest, s",
}


#: a process that is forked meanwhile would keep another one's pipe open
FORKING = threading.Lock()


def work(name: str, first: int, last: int, seed: str, out: int) -> None:
    """Judge inputs of one reader in this process, a line of JSON for each to the file ``out``."""
    import torch

    torch.set_num_threads(1)
    os.setpgid(0, 0)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "r+") as nothing:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
        clean_environment(Path(folder))
        material = Path(folder, "material")
        material.mkdir()
        try:
            session = READERS[name].make(material)
            warm_up(session, Path(folder, "warm"))
        except BaseException as error:
            os.write(out, json.dumps({"broken": repr(error)}).encode() + b"\n")
            raise
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESSES, taken + ADDRESSES))
        for number in range(first, last):
            outcome = judge(session, f"{seed} {name}", number, Path(folder, "box"))
            os.write(out, json.dumps(outcome.as_dict()).encode() + b"\n")


def outcomes(name: str, inputs: int, seed: str) -> list[dict[str, Any]]:
    """Judge inputs 0 to ``inputs`` of a reader; start its process again where one ends it."""
    found: list[dict[str, Any]] = []
    while len(found) <= inputs:
        with FORKING:
            source, out = os.pipe()
            arguments = (name, len(found), inputs + 1, seed, out)
            process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
            process.start()
            os.close(out)
        _follow(process, source, found)
        if len(found) <= inputs:
            line = f"the process ended with {process.exitcode}"
            found.append({"number": len(found), "verdict": "hang", "line": line})
    return found


def _follow(process: Any, source: int, found: list[dict[str, Any]]) -> None:
    """Collect what a process says, and kill it if it says nothing for too long."""
    left = b""
    with open(source, "rb", buffering=0) as file:
        # no input has so long; the first has to wait for the material
        while select.select([file], [], [], 4 * CLOCK_SECONDS)[0]:
            data = file.read(1 << 16)
            if not data:
                break
            *lines, left = (left + data).split(b"\n")
            for line in map(json.loads, lines):
                if "broken" in line:
                    raise RuntimeError(f"the valid input: {line['broken']}")
                found.append(line)
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def summary(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a reader."""
    counts = {
        column: sum(outcome["verdict"] == verdict for outcome in found)
        for column, verdict in (
            ("refused", "refused"),
            ("read", "read"),
            ("tracebacks", "traceback"),
            ("hangs", "hang"),
        )
    }
    bound = READERS[name].memory_mb
    return {
        "reader": name,
        "inputs": len(found),
        **counts,
        "outside": sum(bool(outcome.get("escaped")) for outcome in found),
        "executed": sum(bool(outcome.get("executed")) for outcome in found),
        "memory_mb": round(max(outcome.get("memory_mb", 0.0) for outcome in found)),
        "too_much_memory": sum(outcome.get("memory_mb", 0.0) > bound for outcome in found),
        "slowest_s": round(max(outcome.get("seconds", 0.0) for outcome in found), 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown."""
    from tabulate import tabulate

    shown = [[row[column] for column in COLUMNS] for row in rows]
    return tabulate(shown, list(COLUMNS.values()), tablefmt="github", intfmt=",")


def run(args: argparse.Namespace) -> int:
    """Run the command line; the exit status is 1 where a reader did what it must not."""
    names = args.reader or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        raise ValueError(f"no reader {unknown[0]!r}: there are {', '.join(READERS)}")
    if args.input is not None:
        return show(names[0], args.input, args.seed)

    def one(name: str) -> dict[str, Any]:
        start = time.monotonic()
        found = outcomes(name, args.inputs, args.seed)
        row = summary(name, found)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        for outcome in found:
            bad = outcome["verdict"] in ("traceback", "hang") or outcome.get("escaped")
            large = outcome.get("memory_mb", 0) > READERS[name].memory_mb
            if bad or large or outcome.get("executed"):
                print(f"  {json.dumps(outcome)}", file=sys.stderr, flush=True)
        return row

    import train  # noqa: F401  once for all processes
    import trainers  # noqa: F401

    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(one, names):
            rows.append(row)
            if args.out:
                keep(rows, args)
    print(table(rows))
    return int(any(row[column] for row in rows for column in BAD))


def keep(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the rows to a file; those of other readers in it stay."""
    present = json.loads(args.out.read_text("utf-8"))["readers"] if args.out.exists() else []
    by_name = {row["reader"]: row for row in (*present, *rows)}
    kept = [by_name[name] for name in READERS if name in by_name]
    write_json({"seed": args.seed, "readers": kept}, args.out, indent=1)
    if args.out.resolve() == OUT:
        fill_document(PAGE, {"hostile": f"\n{table(kept)}\n\n"})


def show(name: str, number: int, seed: str) -> int:
    """Read one input again, with the place where its error arose."""
    with tempfile.TemporaryDirectory() as folder:
        clean_environment(Path(folder))
        material, box = Path(folder, "material"), Path(folder, "box")
        material.mkdir()
        session = READERS[name].make(material)
        print(judge(session, f"{seed} {name}", number, box))
        session.read(box / "target")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    add = parser.add_argument
    add("--inputs", type=positive, default=2000, metavar="N", help="of each reader (2000)")
    add("--reader", action="append", metavar="NAME", help="this reader alone; may be given again")
    add("--input", type=int, metavar="N", help="show this input of the reader")
    add("--seed", default="1", help="decides on the inputs (1)")
    add("--jobs", type=positive, default=1, metavar="N", help="readers at the same time (1)")
    add(
        "--out",
        type=output_file,
        metavar="FILE",
        help=f"keep the figures; in {OUT.name} of the benchmarks, also show them in {PAGE.name}",
    )
    add_traceback(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
