"""What a report is about: every run folder, what became of it, and its training curve."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocols import protocol_of, read_folder

from .. import predictions
from ..finished import read_last_start
from ..record import FILE, BadRecord, RunResult, read
from ..rows import Row, listing
from ..runs import TABLES, Method, has_halves

# What can become of a run, the best first.
COUNTS, REPEATS = "counts", "same result again"
LEFT_OUT, UNTESTED = "left out", "not tested"
UNFINISHED, DAMAGED, UNKNOWN = "unfinished", "damaged", "in no known folder"
STATES = (COUNTS, REPEATS, LEFT_OUT, UNTESTED, UNFINISHED, DAMAGED, UNKNOWN)

_EPOCH = re.compile(r"epoch \[(\d{1,9})/(\d{1,9})\]")
# A name, its last value, and in brackets its mean over the epoch so far.
_AVERAGE = re.compile(r"(\w+) [-+.\deE]+ \(([-+.\deE]+)\)")
_RATE = re.compile(r"\blr ([-+.\deE]+)")
_TAIL_BYTES = 4000


@dataclass
class Run:
    """A run folder.

    ``name`` is its path below the output folder; ``protocol`` the key of the table its result
    belongs to, ``part`` base, new or accuracy; ``state`` one of ``STATES`` and ``reason`` why it
    does not count. What the folder's path does not tell is empty.
    """

    folder: Path
    name: str
    state: str = UNKNOWN
    reason: str = ""
    protocol: str = ""
    part: str = ""
    dataset: str = ""
    trainer: str = ""
    config: str = ""
    shots: str = ""
    source: str = ""
    seed: str = ""
    trains: bool = False
    result: RunResult | None = None
    record: dict[str, Any] | None = None

    @property
    def method(self) -> Method:
        """Its row, as far as the path tells."""
        shots = math.inf if self.shots == "all" else int(self.shots or 0)
        return Method(self.trainer, self.config, shots, self.source)

    @property
    def value(self) -> float | None:
        """Its accuracy in percent; None where it has none."""
        if self.result is not None:
            return self.result.value
        result = self.record and self.record["result"]
        accuracy = result["metrics"].get("accuracy") if result else None
        return accuracy if isinstance(accuracy, float) else None

    @property
    def has_predictions(self) -> bool:
        """Whether it kept its logits."""
        return (self.folder / predictions.FILE).is_file()

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """The record's classes with their numbers of test images; empty where there are none."""
        result = self.record and self.record["result"]
        return result["per_class"] if result else []


def find_runs(output: Path, rows: Iterable[Row], notes: Iterable[str]) -> list[Run]:
    """Return every run folder below an output folder, by name.

    Args:
        output: that was read.
        rows: of all tables.
        notes: every line that was said when they were made.
    """
    counted = {result.source.parent: result for row in rows for result in row.read}
    repeats = {result.source.parent: result for row in rows for result in row.repeats}
    folders = {file.parent for name in ("log.txt*", FILE) for file in output.rglob(name)}
    runs = []
    for folder in sorted(folders):
        run = Run(folder, folder.relative_to(output).as_posix())
        if place := read_folder(run.name):
            kind, fields = place
            run.dataset, run.trainer = fields["dataset"], fields["trainer"]
            run.config = "/".join(filter(None, (fields["config"], fields.get("subfolder"))))
            run.shots, run.seed = fields.get("shots", ""), fields.get("seed", "")
            run.source = fields.get("source", "")
            run.protocol, run.part = protocol_of(kind, run.dataset).key, kind.metric
            run.trains = kind.trains
        if result := counted.get(folder):
            run.state, run.result, run.record = COUNTS, result, result.record
        elif result := repeats.get(folder):
            run.state, run.result, run.record = REPEATS, result, result.record
        else:
            _look_closer(run, notes)
        runs.append(run)
    return runs


def _look_closer(run: Run, notes: Iterable[str]) -> None:
    """Find out why a run does not count."""
    said = [note.partition(str(run.folder))[2].removeprefix(f"/{FILE}") for note in notes]
    reasons = [text.lstrip(": ") for text in said if re.match(r"[/:]|$", text) and text]
    run.reason = "; ".join(dict.fromkeys(reasons))
    try:
        run.record = read(run.folder)
    except BadRecord as error:
        run.state, run.reason = DAMAGED, run.reason or str(error)
        return
    if not run.protocol:
        return
    start = read_last_start(run.folder, run.trains)
    if run.record is not None and run.record["result"] is None:
        run.state, run.reason = UNTESTED, run.record["not_tested"] or ""
    elif start is not None and start.finished:
        run.state = LEFT_OUT
        run.reason = run.reason or "differs from the others of its row: see the notes"
    else:
        run.state, run.reason = UNFINISHED, progress(run.folder)


def progress(folder: Path) -> str:
    """Return how far an unfinished run came, and when it last wrote to its log."""
    log = max(folder.glob("log.txt*"), default=None)
    if log is None:
        return "no log"
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        epochs = _EPOCH.findall(file.read().decode(errors="replace"))
    written = datetime.datetime.fromtimestamp(log.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    reached = "before its first epoch" if not epochs else "in epoch {} of {}".format(*epochs[-1])
    return f"{reached}, last written {written}"


def failures(output: Path) -> list[tuple[str, str]]:
    """Return the calls of a sweep whose last attempt failed: name, and what it said.

    Args:
        output: ``scripts/all.py`` keeps what its calls print in the folder ``all`` there, a file
            each, and why they failed in ``failures.jsonl``.
    """
    logs, found = output / "all", {}
    for log in sorted(logs.glob("*.txt")):
        lines = log.read_text("utf-8", errors="replace").split("\n")
        last = [line.strip() for line in lines if line.strip()][-1:]
        if last and last[0].startswith("error:"):
            found[log.name] = log.stem.replace("-", " "), last[0].removeprefix("error:").strip()
    kept = logs / "failures.jsonl"
    for line in kept.read_text("utf-8", errors="replace").split("\n") if kept.is_file() else ():
        try:
            note = json.loads(line)
            log = logs / Path(note["log"]).name
            ended = datetime.datetime.fromisoformat(note["time"]).timestamp()
            told = str(note["run"]), f"{note['reason']} (status {note['status']})"
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        # a later attempt has begun its log anew
        if log.is_file() and log.stat().st_mtime <= ended + 1:
            found[log.name] = told
    return sorted(found.values())


def training_curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return name -> (epoch, mean over the epoch) of what a training printed, and ``lr``.

    Logs have it whatever tracker was used, also those of upstream's code, and are read faster than
    event files, which hold every step.

    Args:
        folder: of the run; what a later start did again replaces what an earlier one did.
    """
    last: dict[int, str] = {}
    for log in sorted(folder.glob("log.txt*")):
        with open(log, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("epoch [") and (match := _EPOCH.match(line)):
                    epoch = int(match[1])
                    if epoch not in last or epoch < max(last):
                        last = {e: text for e, text in last.items() if e < epoch}
                    last[epoch] = line
    curve: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for epoch, line in last.items():
        values = [(n, v) for n, v in _AVERAGE.findall(line) if n not in ("time", "data")]
        for name, text in [*values, *(("lr", rate) for rate in _RATE.findall(line))]:
            try:
                value = float(text)
            except ValueError:
                continue
            if math.isfinite(value):
                curve[name].append((epoch, value))
    return curve


# --- what was run, protocol by protocol -----------------------------------------------------------


@dataclass
class Coverage:
    """Which seeds of which data sets a table has, a line per method.

    ``methods`` is their number, each with all its numbers of shots, sources and epochs. ``lines``
    are method -> data set -> (seeds there are, seeds that others have), both as text.
    """

    title: str
    datasets: list[str]
    methods: int = 0
    lines: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)


def coverage_of(protocol: str, rows: list[Row], names: Iterable[str]) -> Coverage:
    """Return which seeds of which data sets there are.

    Args:
        protocol: key of it.
        rows: of all protocols.
        names: the data sets that have a column, in order.
    """
    mine = [row for row in rows if row.protocol == protocol and not row.covered]
    trained = [row for row in mine if row.parameters != 0]
    found = Coverage(TABLES[protocol].title, list(names))
    for row in sorted(mine, key=lambda row: row.line):
        alike = [r for r in trained if (r.line.shots, r.line.source) == _table(row)]
        every = {seed for r in alike for seed in r.seeds} or set(row.seeds)
        missing = set() if row.parameters == 0 else every - set(row.seeds)
        half = ""
        if has_halves(protocol) and "H" not in row.mean:  # no seed has both
            half = f" ({next(iter(row.mean))} only)"
        line = found.lines.setdefault(str(row.line), {})
        line[row.dataset] = listing(row.seeds) + half, listing(missing)
    found.methods = len({(row.line.trainer, row.line.config) for row in mine})
    papers = TABLES[protocol].datasets
    if not set(papers).isdisjoint(found.datasets):
        found.lacking = [name for name in papers if name not in found.datasets]
    return found


def _table(row: Row) -> tuple[float, str]:
    return row.line.shots, row.line.source
