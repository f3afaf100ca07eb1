"""Columns on request: what the runs of a row cost, and how they were trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from support.hints import nearest

from .record import RunResult
from .rows import Row, listing

#: TEST.FINAL_MODEL of the split that chose the epoch
SELECTIONS = {None: "last_step", "val": "best_val", "test": "best_test"}


class Column(NamedTuple):
    """A column: its head in tables, its name in csv and json, and its value of some runs.

    ``value`` returns None where the runs do not tell; ``show`` is the value in a table's cell.
    """

    head: str
    name: str
    value: Callable[[Sequence[RunResult]], Any]
    show: Callable[[Any], str] = str


def _trainings(runs: Iterable[RunResult]) -> list[RunResult]:
    return [run for run in runs if run.facts.get("eval_only") == "False"]


def _between(values: Iterable[int]) -> int | str | None:
    """Return one number, or the least and the largest of several as text."""
    numbers = sorted(set(values))
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else next(iter(numbers), None)


def _parameters(runs: Sequence[RunResult]) -> int | str | None:
    return _between(
        int(run.facts["parameters"])
        for run in _trainings(runs) or runs
        if run.facts.get("parameters", "").isdecimal()
    )


def _seconds(runs: Sequence[RunResult]) -> float | None:
    """Return the mean seconds of an epoch."""
    records = [run.record for run in _trainings(runs) if run.record is not None]
    epochs = [seconds for record in records for seconds in record["seconds"]["epochs"]]
    known = [seconds for seconds in epochs if isinstance(seconds, float | int)]
    return fmean(known) if known else None


def _memory(runs: Sequence[RunResult]) -> int | None:
    """Return the largest peak memory of a training in bytes: of the GPU where one was used."""
    peaks = []
    for run in _trainings(runs):
        if run.record is not None:
            memory = run.record["memory"]
            peaks.append(memory["host_bytes" if memory["cuda_bytes"] is None else "cuda_bytes"])
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else None


def _trained(run: RunResult) -> tuple[str | None, str | None]:
    """Return rule of selection and number of epochs of the training behind a run; None if unknown.

    A test's are those that the record of the training has, which its own record repeats.
    """
    if run.zero_shot:
        return None, None
    if run.facts.get("eval_only") == "False":
        return run.facts.get("TEST.FINAL_MODEL"), _epochs_in(run.facts)
    model = {} if run.record is None else run.record["model"]
    trained = model.get("trained")
    if not isinstance(trained, dict) or not isinstance(trained.get("settings"), dict):
        return None, None
    epochs, loaded = _epochs_in(trained["settings"]), model["load_epoch"]
    chosen = SELECTIONS.get(model["chosen_on"], str(model["chosen_on"]))
    return (
        chosen if loaded in (None, epochs) else f"epoch {loaded}",
        None if epochs is None else str(epochs),
    )


def _epochs_in(settings: Mapping[str, Any]) -> Any:
    """Return the number of epochs in settings; None where they count training steps."""
    return (
        None if int(settings.get("OPTIM.MAX_ITERATIONS") or 0) else settings.get("OPTIM.MAX_EPOCH")
    )


def _selection(runs: Sequence[RunResult]) -> str | None:
    return listing({rule for rule, _ in map(_trained, runs) if rule}) or None


def _epochs(runs: Sequence[RunResult]) -> int | str | None:
    numbers = [epochs for _, epochs in map(_trained, runs) if epochs]
    return _between(int(epochs) for epochs in numbers if epochs.isdecimal())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


#: name for --columns -> column
COLUMNS = {
    "params": Column("params", "parameters", _parameters),
    "seconds": Column("s/epoch", "seconds_per_epoch", _seconds, "{:.3g}".format),
    "memory": Column("memory", "peak_memory_bytes", _memory, _gigabytes),
    "selection": Column("selection", "selection", _selection),
    "epochs": Column("epochs", "epochs", _epochs),
}


def columns_of(text: str) -> list[Column]:
    """Return the columns that a list of names asks for, each once.

    Args:
        text: names with commas between them.

    Raises:
        ValueError: there is no such column.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        if name not in COLUMNS:
            raise ValueError(
                f"--columns: no column {name!r}; there are: {', '.join(COLUMNS)}"
                f"{nearest(name, COLUMNS)}"
            )
    return [COLUMNS[name] for name in dict.fromkeys(names)]


def runs_behind(row: Row, rows: Iterable[Row]) -> list[RunResult]:
    """Return the runs of a row; of an average those of its data sets.

    Args:
        row: one of ``rows``.
        rows: of its protocol.
    """
    if not row.covered:
        return row.read
    parts = [part for part in rows if part.line == row.line and part.dataset in row.covered]
    return [run for part in parts for run in part.read]


def cells(columns: Iterable[Column], runs: Sequence[RunResult]) -> list[str]:
    """Return the cells of some runs; ``-`` where they do not tell."""
    values = ((column, column.value(runs)) for column in columns)
    return ["-" if value is None else column.show(value) for column, value in values]


def blanks(
    columns: Sequence[Column], runs_of: Iterable[tuple[str, Sequence[RunResult]]]
) -> list[str]:
    """Return lines that name the columns in which methods have no value, and say why.

    Args:
        columns: of a table.
        runs_of: names of the table's methods, with their runs. Zero-shot ones are not missed.
    """
    trained = [
        (name, runs) for name, runs in runs_of if not all(run.zero_shot for run in runs) or not runs
    ]
    lacking: dict[str, list[str]] = {}
    for column in columns:
        names = [name for name, runs in trained if column.value(runs) is None]
        if names:
            lacking.setdefault(", ".join(dict.fromkeys(names)), []).append(column.head)
    return [
        f"no {', '.join(heads)} of {names}: no record of a training behind this table tells it"
        for names, heads in lacking.items()
    ]


def values(columns: Iterable[Column], runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return the columns of csv and json that runs have a value in."""
    found = {column.name: column.value(runs) for column in columns}
    return {name: value for name, value in found.items() if value is not None}
