"""All runs below an output folder, by protocol, data set, method and seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dassl.config import values_of_file
from protocols import (
    EVALUATION,
    PROTOCOLS,
    PUBLISHED,
    TRAINING,
    ZEROSHOT,
    Folder,
    protocol_of,
    read_folder,
    source_of,
)
from support.command_line import ROOT

from .logs import BadLog
from .record import FILE, RunResult, read_result

DATA_SETS = ROOT / "configs" / "datasets"
# Key of a protocol -> what it says, in the order of the tables.
TABLES = {protocol.key: protocol for protocol in PROTOCOLS}
TITLES = {key: protocol.title for key, protocol in TABLES.items()}
METRICS = {key: protocol.metrics for key, protocol in TABLES.items()}
# Trainers that train nothing and draw no shots.
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")


@dataclass(frozen=True, order=True)
class Method:
    """A row of a table: one trainer in one configuration.

    ``shots`` is 0 for zero-shot models, which draw none even where their folders have a number of
    them, and infinite for a training on all images; ``source`` is the data set of the training
    where the test is on another one, else empty.
    """

    trainer: str
    config: str
    shots: float
    source: str = ""

    def __post_init__(self) -> None:
        if self.trainer in ZERO_SHOT:
            object.__setattr__(self, "shots", 0)  # frozen

    def __str__(self) -> str:
        return f"{self.trainer} {self.config} ({shots_phrase(self.shots)})"


def has_halves(protocol: str) -> bool:
    """Return whether a table has accuracies of base and new classes, and H."""
    return METRICS[protocol] == ("base", "new")


def shots_name(shots: float) -> int | str:
    """Return a number of shots as scripts and folders write it: 16, or ``all``."""
    return "all" if shots == math.inf else int(shots)


def shots_phrase(shots: float) -> str:
    """Return a number of shots in words: ``zero-shot``, ``1 shot``, ``all shots``."""
    return f"{shots_name(shots)} shot{'' if shots == 1 else 's'}" if shots else "zero-shot"


@dataclass
class Runs:
    """The runs of a method on a data set.

    ``by_seed`` is metric -> seed -> percent, ``results`` metric -> seed -> result of that run;
    ``facts`` has for every argument, config key and ``parameters`` (``record.facts_of``) the values
    that they show; ``beside`` is metric -> seed -> value of further metrics of the records;
    ``repeats`` are results of further runs of a seed, equal to the one that counts.
    """

    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    facts: dict[str, set[str]] = field(default_factory=dict)
    results: dict[str, dict[int, RunResult]] = field(default_factory=dict)
    beside: dict[str, dict[int, float]] = field(default_factory=dict)
    repeats: list[RunResult] = field(default_factory=list)

    def add(self, metric: str, seed: int, result: RunResult, note: Callable[[str], None]) -> None:
        """Let the result of a run count in the place of one that is there.

        Args:
            metric: base, new, all or accuracy.
            seed: of the run.
            result: its result.
            note: called with a line about the one that was there, if it is another result.
        """
        earlier = self.results.setdefault(metric, {}).get(seed)
        # logs are rounded
        if earlier is not None and round(earlier.value, 2) == round(result.value, 2):
            self.repeats.append(earlier)
        elif earlier is not None:
            here, there = earlier.source.parent, result.source.parent
            note(f"left out: {here}: {there} has the same place, and counts")
        self.results[metric][seed] = result
        self.by_seed.setdefault(metric, {})[seed] = result.value


# protocol -> data set -> method -> its runs
Scores = dict[str, dict[str, dict[Method, Runs]]]


def layout_root(run: Path) -> Path | None:
    """Return the folder below which a run folder lies in the layout of a protocol; None if none."""
    for folder in run.parents:
        if read_folder(run.relative_to(folder).as_posix()):
            return folder
    return None


def _contradiction(kind: Folder, fields: dict[str, str], result: RunResult) -> str:
    """Return how the record of a run contradicts its folder, as after copying; else nothing."""
    record = result.record
    if record is None:
        return ""
    data_set_file = DATA_SETS / f"{fields['dataset']}.yaml"
    registered = record["data"]["name"]
    if data_set_file.is_file():
        registered = values_of_file(str(data_set_file)).get("DATASET.NAME", registered)
    said = {
        "seed": (fields.get("seed"), record["seed"]),
        "data set": (registered, record["data"]["name"]),
        "classes": (kind.classes, result.facts.get("DATASET.SUBSAMPLE_CLASSES")),
        "trainer": (fields["trainer"], record["method"]),
    }
    if kind.sets_shots and fields.get("shots", "all") != "all":
        said["shots"] = fields["shots"], record["shots"]
    differences = [
        f"{name} {recorded} (the folder says {expected})"
        for name, (expected, recorded) in said.items()
        if None not in (expected, recorded) and str(expected) != str(recorded)
    ]
    return f"its {FILE} is of {', '.join(differences)}" if differences else ""


def _seed_of(result: RunResult) -> int:
    """Return the seed that a run itself tells; 0 where it had none, or tells none."""
    told = result.facts.get("seed") if result.record is None else result.record["seed"]
    try:
        return max(0, int(told or 0))  # upstream's scripts say -1 for none
    except ValueError:
        return 0


def collect(output: Path, keyword: str, note: Callable[[str], None]) -> Scores:
    """Return all finished results below a folder.

    A model that is tested on the data set it was trained on (or a zero-shot one) is filed under
    ``fewshot``, which is also where the source column of the other protocols comes from.

    Args:
        output: folder in the layout of the scripts (and of upstream's).
        keyword: the metric.
        note: called with one line for every run that does not count, or is left out.
    """
    scores: Scores = {p: defaultdict(lambda: defaultdict(Runs)) for p in TITLES}
    files = (file for name in ("log.txt*", FILE) for file in output.rglob(name))
    names = {file.parent.relative_to(output).as_posix() for file in files}
    places = {name: read_folder(name) for name in names}

    def tests_first(name: str) -> tuple[bool, str]:
        place = places[name]
        return place is None or place[0].trains, name

    # Of two results, one of a test and one of the training itself, the latter counts.
    for name in sorted(places, key=tests_first):
        folder, place = output / name, places[name]
        if place is None:
            note(f"skipped: {folder}: not the layout of a known protocol")
            continue
        kind, fields = place
        dataset = fields["dataset"]
        # Upstream's few-shot trainings lie beside the tests of published weights.
        tests_only = not kind.trains and kind is not PUBLISHED
        try:
            result = read_result(folder, keyword, True if tests_only else None)
        except BadLog as reason:
            note(f"skipped: {reason}")
            continue
        if problem := _contradiction(kind, fields, result):
            note(f"left out: {folder}: {problem}")
            continue
        number, source = fields.get("shots", "0"), fields.get("source", "")
        shots = math.inf if number == "all" else int(number)
        if kind.metric == "accuracy":
            zero_shot = kind is ZEROSHOT or result.zero_shot
            shots = 0 if zero_shot else shots
            if zero_shot and source_of(dataset):
                kind, source = EVALUATION, source_of(dataset)
            elif source == dataset:
                kind, source = TRAINING, ""
        protocol, metric = protocol_of(kind, dataset).key, kind.metric
        config = "/".join(filter(None, (fields["config"], fields.get("subfolder"))))
        method = Method(fields["trainer"], config, shots, source)
        runs = scores[protocol][dataset][method]
        seed = int(fields["seed"]) if "seed" in fields else _seed_of(result)
        runs.add(metric, seed, result, note)
        if keyword == "accuracy" and result.record is not None:
            metrics = result.record["result"]["metrics"]
            for name in TABLES[protocol].beside:
                if isinstance(metrics.get(name), float | int):
                    runs.beside.setdefault(name, {})[seed] = metrics[name]
        for key, fact in result.facts.items():
            runs.facts.setdefault(key, set()).add(fact)
    return scores
