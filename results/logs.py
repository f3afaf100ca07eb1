"""Log files of runs: which of them count, and the value they end with.

A log counts when it shows a result after the end of the training (both ``Finish training`` and
``Finished training`` mark it), or, in a log of a test, after ``=> result``. Where a run was started
several times, in one log or in several, its last start counts: results from before it may be of
other weights.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from support.files import read_bytes

TRAIN_END = re.compile(r"Finish(ed)? training")
TEST_END = re.compile(r"=> result")
# Ends a training that is not tested, as asked for or since there are no test images.
NOT_TESTED = "Not tested: "
# Opens every start of a run.
START = "** Arguments **"
# Written with the arguments of a run that only tests, so that its log has no end of a training.
EVAL_ONLY = "eval_only: True"
# Written after the arguments of a run that ends by writing its record: without that, which a full
# disk may prevent, it has not finished, whatever its log shows. Other logs may stand alone.
WRITES_RECORD = "The run has finished when result.json is written"
# A line of the arguments or of the configuration, which this line follows.
SETTING = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: (?P<value>.*))?")
CONFIG_END = "Collecting env info"
METRIC = re.compile(r"\* (\w+): [\d.eE+-]+%")
PARAMETERS = re.compile(r"Trainable parameters: (\d{1,3}(?:,\d{3}){0,5})")
# Written where a data set has no class of as many training images as shots.
FEW_IMAGES = re.compile(r"Note: no class has \d+ training images: all are used, (.+) per class")


class BadLog(Exception):
    """A run without a usable log or record; the text says why."""


class Untested(BadLog):
    """A training that ended without a test, for lack of test images or as asked for."""


def last_start(path: Path) -> list[str]:
    """Return the lines of a log after the last start of its run, indented as they are.

    Raises:
        BadLog: it cannot be read.
    """
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise BadLog(f"{path}: cannot be read: {error.strerror}") from error
    starts = [number for number, line in enumerate(lines) if line.strip() == START]
    return lines[starts[-1] + 1 :] if starts else lines


def read_facts(path: Path) -> dict[str, str]:
    """Return what a log says about its run.

    Args:
        path: the log; of several starts in it only the last is read.

    Returns:
        The arguments (``eval_only``), the configuration (``MODEL.BACKBONE.NAME``),
        ``parameters``, the number of trainable ones, and ``images_per_class``, where there were
        fewer than shots (``4 to 6``), each as far as the log shows it. A run that only tests, with
        no weights to load, has ``zero_shot`` (``True``) and trains 0 parameters.
    """
    facts: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    lines = last_start(path)
    for line in lines:
        if line.startswith(CONFIG_END):
            break
        if match := SETTING.fullmatch(line):
            depth = len(match["indent"])
            while parents and parents[-1][0] >= depth:
                parents.pop()
            parents.append((depth, match["key"]))
            facts[".".join(key for _, key in parents)] = (match["value"] or "").strip()
    counts = [match[1] for line in lines if (match := PARAMETERS.match(line.strip()))]
    if counts:
        facts["parameters"] = counts[-1].replace(",", "")
    elif facts.get("eval_only") == "True" and facts.get("model_dir") == "":
        facts |= {"parameters": "0", "zero_shot": "True"}
    if few := [match[1] for line in lines if (match := FEW_IMAGES.fullmatch(line.strip()))]:
        facts["images_per_class"] = few[-1]
    return facts


def read_log(path: Path, keyword: str, test_log: bool | None) -> float:
    """Return the last value of a metric in a finished log, in percent.

    Args:
        path: the log; of several starts in it only the last is read.
        keyword: the metric: accuracy, error, macro_f1 or average.
        test_log: whether it is the log of a test; None lets the log tell.

    Raises:
        BadLog: when the log is unfinished or holds no such value.
    """
    lines = [line.strip() for line in last_start(path)]
    if test_log is None:
        test_log = EVAL_ONLY in lines
    gate = TEST_END if test_log else TRAIN_END
    ends = [number for number, line in enumerate(lines) if gate.fullmatch(line)]
    if not ends:
        raise BadLog(f"{path}: unfinished")
    pattern = re.compile(rf"\* {re.escape(keyword)}: ([\d.eE+-]+|nan|inf)%")
    values = [match[1] for line in lines[ends[0] :] if (match := pattern.search(line))]
    if not values:
        untested = [line for line in lines[ends[0] :] if line.startswith(NOT_TESTED)]
        if untested:
            raise Untested(f"{path}: {untested[0]}")
        raise BadLog(f"{path}: no {keyword} after its end line")
    try:
        value = float(values[-1])
    except ValueError:
        raise BadLog(f"{path}: {keyword} is {values[-1]!r}, not a number") from None
    if not math.isfinite(value):
        raise BadLog(f"{path}: {keyword} is {value}")
    if not 0 <= value <= 100:
        raise BadLog(f"{path}: {keyword} is {values[-1]}%, not within 0 to 100%: run it again")
    return value


def metrics_below(folder: Path) -> list[str]:
    """Return the names of the metrics that the logs below a folder show, sorted."""
    lines = (line for log in logs_below(folder) for line in last_start(log))
    return sorted({match[1] for line in lines if (match := METRIC.fullmatch(line.strip()))})


def logs_below(folder: Path) -> list[Path]:
    """Return all logs of runs below a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("log.txt*") if path.is_file())


def read_run(folder: Path, keyword: str, test_log: bool | None) -> tuple[Path, float]:
    """Return the log of a run's last start, and its value in percent.

    Args:
        folder: run folder with ``log.txt`` and, from upstream's repeated runs, ``log.txt-<date>``.
        keyword: the metric.
        test_log: whether these are logs of a test; None lets them tell.

    Raises:
        BadLog: when there is no log, or it does not count.
    """
    log = newest_log(folder)
    if log is None:
        raise BadLog(f"{folder}: no log.txt")
    return log, read_log(log, keyword, test_log)


def newest_log(folder: Path) -> Path | None:
    """Return the log of a run folder that was started last; None if there is none."""
    # The order of the names is that of the dates in them.
    logs = sorted(path for path in folder.glob("log.txt*") if path.is_file())
    return logs[-1] if logs else None
