"""The published figures that the csv files of this folder hold."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from protocols import ELEVEN, SOURCE
from results.runs import TABLES, TITLES

FOLDER = Path(__file__).parent
AVERAGE = "average"
# Protocols of published figures; an ablation is of base-to-new runs in several settings.
PROTOCOLS = TITLES | {"ablation": "Ablation"}
# Data sets of an average, unless a figure names some that it lacks.
AVERAGED = {key: protocol.targets(SOURCE) for key, protocol in TABLES.items()}
AVERAGED["ablation"] = ELEVEN


@dataclass(frozen=True)
class Figure:
    """A published number in percent, or the spread of one: a line of a data file.

    ``trainer`` is the registry name it belongs to, empty for methods that are not here; ``dataset``
    may be ``average``, which is then not over the data sets ``without``; ``shots`` is None where
    it does not matter; ``settings`` are config values that a run must show to be of the published
    method, ``a|b`` where either will do; ``value`` is the text in print; ``seed`` is empty for a
    mean over seeds, and where the source has one run alone.
    """

    method: str
    trainer: str
    protocol: str
    dataset: str
    without: tuple[str, ...]
    shots: int | None
    backbone: str
    settings: tuple[tuple[str, str], ...]
    metric: str
    value: str
    seed: str
    epochs: str
    source: str
    note: str

    @property
    def percent(self) -> float:
        """The number itself."""
        return float(self.value)

    @property
    def runs(self) -> str:
        """Protocol of the runs that it can be compared with."""
        return "base2new" if self.protocol == "ablation" else self.protocol

    @property
    def averaged(self) -> tuple[str, ...]:
        """Data sets of an average of this protocol, in order."""
        return tuple(d for d in AVERAGED[self.protocol] if d not in self.without)


COLUMNS = [field.name for field in fields(Figure)]


def read_published(folder: Path = FOLDER) -> list[Figure]:
    """Return all published figures of a folder, file by file.

    Args:
        folder: its csv files have the columns of ``Figure``; ``settings`` as
            ``KEY=VALUE;KEY=VALUE``, ``without`` as names with spaces.

    Raises:
        FileNotFoundError: when there is no csv file.
        ValueError: when a file has other columns, or a line lacks its number or source, or names
            an unknown protocol or data set, naming the line.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise FileNotFoundError(f"no published figures (*.csv) in {folder}")
    figures = []
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise ValueError(f"{path}: its columns must be {','.join(COLUMNS)}")
            for line in reader:
                try:
                    figures.append(parse(line))
                except ValueError as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return figures


def parse(line: dict[str, str]) -> Figure:
    """Return the figure of a line of a data file.

    Raises:
        ValueError: saying what is wrong with the line.
    """
    if None in line or None in line.values():
        raise ValueError(f"needs {len(COLUMNS)} fields")
    if not line["source"] or line["protocol"] not in PROTOCOLS:
        raise ValueError(f"needs a source, and a protocol of {', '.join(PROTOCOLS)}")
    float(line["value"])
    without = tuple(line["without"].split())
    known = AVERAGED[line["protocol"]]
    if unknown := [d for d in without if d not in known or line["dataset"] != AVERAGE]:
        raise ValueError(f"{', '.join(unknown)} cannot be missing from {line['dataset']}")
    pairs = [pair.partition("=") for pair in line["settings"].split(";") if pair]
    parsed: dict[str, Any] = {
        "without": without,
        "shots": int(line["shots"]) if line["shots"] else None,
        "settings": tuple((key, value) for key, _, value in pairs),
    }
    return Figure(**{**line, **parsed})
