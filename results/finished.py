"""Tell whether a run finished, and how it relates to a requested one. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dassl.config import decoded, get_cfg_default, is_runtime_key, leaves, values_of_file

from . import predictions
from .logs import WRITES_RECORD, BadLog, Untested, last_start, newest_log, read_facts, read_log
from .record import FILE, BadRecord, facts_of, read

EPOCHS, EXTEND = "OPTIM.MAX_EPOCH", "TRAIN.EXTEND"
ITERATIONS = "OPTIM.MAX_ITERATIONS"
# Keys that request more output of a run, but no other training.
OUTPUTS = ("TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT", "TEST.BASE_AND_NEW")
KEEP = "TEST.KEEP_PREDICTIONS"


@dataclass(frozen=True)
class Settings:
    """Settings of a requested run.

    Args:
        files: config files of the data set and of the trainer, in this order.
        pairs: KEY VALUE pairs, one after the other.
    """

    files: Sequence[str]
    pairs: Sequence[str] = ()

    def values(self) -> dict[str, Any]:
        """Return key -> value of files and pairs; the last value of a key wins."""
        values: dict[str, Any] = {}
        pairs = _mapping(self.pairs)
        for path in self.files:
            data_set = pairs.get("DATASET.NAME") or values.get("DATASET.NAME", "")
            values |= values_of_file(path, str(data_set))
        return values | pairs


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


@dataclass(frozen=True)
class Comparison:
    """How a finished run relates to a requested one.

    ``kind`` is ``same`` (do not run it again), ``other`` (the folder holds another run) or ``more``
    (run it, since it asks for more); ``reason`` names the differences that a user should know.
    """

    kind: Literal["same", "other", "more"]
    reason: str = ""


@dataclass(frozen=True)
class LastStart:
    """The last start of a run.

    ``record`` is the file that was read, its record or its log; ``finished`` whether it came to its
    end; ``facts`` are its arguments and its configuration (``logs.read_facts``); ``seconds`` what
    training and test took, where a record says so.
    """

    record: Path
    finished: bool
    facts: dict[str, str]
    seconds: float | None = None

    @property
    def kept_predictions(self) -> bool:
        """Whether the predictions of its test lie beside its record."""
        return self.record.with_name(predictions.FILE).is_file()

    def tests(self, weights: Path | None, model_dir: str) -> bool:
        """Return whether it tested the weights of a file as they are now.

        Args:
            weights: the file; None if there is none.
            model_dir: end of the path of the run folder that they belong to. The output folder may
                have been moved since: what counts is where the run folder is in there.
        """
        newer = weights is None or self.record.stat().st_mtime_ns > weights.stat().st_mtime_ns
        return newer and self.facts.get("model_dir", model_dir).endswith(model_dir)

    def compared_to(self, asked: Settings) -> Comparison:
        """Return how this run, which finished, relates to a requested one."""
        now, given = asked.values(), _mapping(asked.pairs)
        defaults = dict(leaves(get_cfg_default()))
        # a setting that only this run was given has its default in the requested one
        pairs = decoded(self.facts.get("opts", "[]"))
        before = [str(key) for key in pairs[::2]] if isinstance(pairs, list) else []
        differences = {}
        for key in dict.fromkeys([*now, *before]):
            if key not in self.facts:  # a log of an older version, or of other code
                continue
            theirs = decoded(self.facts[key])
            mine = decoded(now.get(key, defaults.get(key, "default")))
            if theirs != mine:
                differences[key] = theirs, mine
        runtime = {key: differences.pop(key) for key in list(differences) if is_runtime_key(key)}
        longer = list(differences) == [EPOCHS] and differences[EPOCHS][1] > differences[EPOCHS][0]
        if longer and decoded(now.get(EXTEND)) is True:
            return Comparison("more")
        if differences:
            advice = "give the settings of that one, or this one a TAG=<short name> of its own"
            if longer:
                advice += f", or train that one for longer with {EXTEND} True"
            return Comparison("other", f"{_listed(differences)}: {advice}")
        asked_for = any(runtime.get(key, (True, False)) == (False, True) for key in OUTPUTS)
        asked_for |= runtime.get(KEEP, ("", ""))[1] == "always" and not self.kept_predictions
        if asked_for or runtime.get("TEST.NO_TEST") == (True, False):
            return Comparison("more")
        return Comparison("same", _listed({k: v for k, v in runtime.items() if k in given}))


def _listed(differences: dict[str, tuple[Any, Any]]) -> str:
    """List keys with the values of the finished run and of the requested one."""
    return ", ".join(f"{key} {old} (now {new})" for key, (old, new) in differences.items())


def read_last_start(folder: Path, trains: bool) -> LastStart | None:
    """Return the last start of a run; None if it was never started.

    It finished if it reached a result (of a training, one after the last epoch), or the end of a
    training that has nothing to test on. Results of earlier starts may be of other weights. A run
    whose log says that it writes a record, which is its last act, finished only with that.

    Args:
        folder: of the run.
        trains: whether the run trains.
    """
    log = newest_log(folder)
    try:
        record = read(folder)
    except BadRecord:
        return None if log is None else LastStart(log, False, read_facts(log))
    if record is not None:
        finished = not record["eval_only"] if trains else record["result"] is not None
        took = [record["seconds"][part] for part in ("training", "testing")]
        seconds = sum(part for part in took if isinstance(part, float | int))
        return LastStart(folder / FILE, finished, facts_of(record), seconds)
    if log is None:
        return None
    try:
        read_log(log, "accuracy", test_log=not trains)
        finished = True
    except Untested:
        finished = True
    except BadLog:
        finished = False
    finished = finished and WRITES_RECORD not in last_start(log)
    return LastStart(log, finished, read_facts(log))
