"""Requests per second of the service, on this machine alone: ``python -m benchmarks.serving RUN``.

``serve.py`` serves the run, and then a bundle of it, in a process of its own; clients in threads of
this one ask over the loopback interface, each for one picture of the embedded digits at a time, by
one connection per client. Every tenth request sends a file that is no picture. Counted are requests
without an answer (``lost``), answers with another label than a single process gives (``wrong``),
and files that are no pictures with the status they should get (``bad``). Server and clients share
the processors.

What is measured replaces ``benchmarks/results/serving.json`` and fills the table of
``docs/deploy.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dassl.utils import read_json, write_json
from support.command_line import add_traceback, output_file, positive, run_command
from support.filled import fill_document

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "serving.json"
DOCUMENT = ROOT / "docs" / "deploy.md"
#: every one of so many requests is a bad one
BAD_EVERY = 10
BAD = b"this is no picture"


@contextlib.contextmanager
def served(*words: str) -> Iterator[str]:
    """Serve in a process of its own.

    Yields:
        the address.

    Raises:
        RuntimeError: the service did not start, or did not end as it should.
    """
    command = [sys.executable, "serve.py", "--port", "0", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError(f"{' '.join(command)} did not start")
        try:
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            process.send_signal(signal.SIGTERM)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")


def load_test(
    address: str, pictures: list[tuple[bytes, str]], count: int, clients: int
) -> dict[str, Any]:
    """Send requests, and measure.

    Args:
        address: of the service.
        pictures: contents of files, and the label of each.
        count: requests in all.
        clients: requests under way at a time.
    """
    import httpx

    seconds: list[float] = []
    found = {"lost": 0, "wrong": 0, "bad": 0}
    numbers, lock = iter(range(count)), threading.Lock()

    def ask(client: httpx.Client, number: int) -> str:
        is_bad = number % BAD_EVERY == BAD_EVERY - 1
        content, label = (BAD, "") if is_bad else pictures[number % len(pictures)]
        try:
            answer = client.post("/predict?top_k=1", files={"file": ("x.png", content)})
            (entry,) = answer.json()["predictions"]
        except (httpx.HTTPError, ValueError, KeyError):
            return "lost"
        if is_bad:
            return "bad" if answer.status_code == 422 and entry.get("error") else "wrong"
        right = answer.status_code == 200 and entry["labels"][0]["label"] == label
        return "right" if right else "wrong"

    def work() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                start = time.perf_counter()
                outcome = ask(client, number)
                with lock:
                    seconds.append(time.perf_counter() - start)
                    if outcome in found:
                        found[outcome] += 1

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    p50, p99 = np.percentile(seconds, [50, 99])
    return {
        "clients": clients,
        "requests": count,
        "per_second": round(count / wall, 1),
        "p50_ms": round(1000 * float(p50), 1),
        "p99_ms": round(1000 * float(p99), 1),
        **found,
        "bad_sent": count // BAD_EVERY,
    }


def measure(
    run: str, images: list[Path], count: int, clients: list[int], folder: Path
) -> list[dict[str, Any]]:
    """Measure the service of a run and of its bundle, with every number of clients."""
    from deploy.bundle import write_bundle
    from trainers import Predictor

    predictor = Predictor.load(run, device="cpu", precision="fp32")
    labels = predictor.predict(images, top_k=1)
    pictures = [
        (path.read_bytes(), label.name) for path, (label,) in zip(images, labels, strict=True)
    ]
    write_bundle(predictor, folder / "bundle", run)
    backbone, results = predictor.cfg.MODEL.BACKBONE.NAME, []
    ways = {
        "run": ("--model-dir", run, "--device", "cpu"),
        "bundle": ("--bundle", str(folder / "bundle")),
    }
    for way, words in ways.items():
        with served(*words) as address:
            load_test(address, pictures, 20, 1)  # the first requests are slower
            for n in clients:
                found = load_test(address, pictures, count, n)
                load = round(os.getloadavg()[0], 1)
                results.append({"served": way, "backbone": backbone, "load": load, **found})
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Lay out the results as Markdown."""
    rows = [
        {
            "served": result["served"],
            "at a time": result["clients"],
            "requests": result["requests"],
            "per second": f"{result['per_second']:.1f}",
            "p50, ms": f"{result['p50_ms']:.0f}",
            "p99, ms": f"{result['p99_ms']:.0f}",
            "lost": result["lost"],
            "wrong": result["wrong"],
            "bad, answered": f"{result['bad']} of {result['bad_sent']}",
            "load": result["load"],
        }
        for result in results
    ]
    return tabulate(rows, "keys", "github", disable_numparse=True) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a training run")
    add("--images", type=Path, default=ROOT / "data" / "digits", help="folder of .png files")
    add("--requests", type=positive, default=300, metavar="N", help="per measurement (300)")
    add("--clients", type=positive, nargs="+", default=[1, 8], metavar="N", help="at a time (1, 8)")
    add("--out", type=output_file, default=OUT)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, keep, print, fill the document."""
    images = sorted(args.images.rglob("test/**/*.png"))[::20]
    if not images:
        raise FileNotFoundError(f"--images: no test/**/*.png below {args.images}")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.run, images, args.requests, args.clients, Path(folder))
    write_json(found, str(args.out))
    print(table(found))
    if args.out == OUT:
        fill_document(DOCUMENT, {"serving": table(read_json(str(OUT)))})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
