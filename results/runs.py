"""All runs below an output folder, by protocol, data set, method and seed."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .logs import BadLog
from .record import FILE, RunResult, read_result

# The data sets of the papers' tables, in their order.
ELEVEN = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")

# Run folders below the output folder; the first that fits counts.
LAYOUTS = {
    "base2new": r"base2new/(?P<part>train_base|test_base|test_new)/(?P<dataset>[^/]+)"
    r"/shots_(?P<shots>\d+|all)/(?P<trainer>[^/]+)/(?P<config>[^/]+)/seed(?P<seed>\d+)",
    "evaluation": r"evaluation/(?P<trainer>[^/]+)/(?P<config>[^/]+)_(?P<shots>\d+|all)shots"
    r"(?P<extra>(/[^/]+)*?)(/from_(?P<source>[^/]+))?/(?P<dataset>[^/]+)/seed(?P<seed>\d+)",
    "training": r"(few_shot/)?(?P<dataset>[^/]+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)"
    r"_(?P<shots>\d+|all)shots(?P<extra>(/[^/]+)*)/seed(?P<seed>\d+)",
    "zeroshot": r"(?P<trainer>ZeroshotCLIP2?)/(?P<config>[^/]+)/(?P<dataset>[^/]+)",
}
# Protocols, in the order of the tables.
TITLES = {
    "base2new": "Base-to-new",
    "fewshot": "Few-shot",
    "cross": "Cross-dataset",
    "dg": "Domain generalisation",
}
# The training run tests on base itself; test_base is for weights that were trained elsewhere.
PARTS = {"train_base": "base", "test_base": "base", "test_new": "new", None: "accuracy"}
METRICS = dict.fromkeys(TITLES, ("accuracy",)) | {"base2new": ("base", "new")}


@dataclass(frozen=True, order=True)
class Method:
    """A row of a table: one trainer in one configuration.

    ``shots`` is 0 for zero-shot models outside base-to-new, where their folders do not depend on
    it, and infinite for a training on all images; ``source`` is the data set of the training where
    the test is on another one, else empty.
    """

    trainer: str
    config: str
    shots: float
    source: str = ""

    def __str__(self) -> str:
        return f"{self.trainer} {self.config} ({shots_phrase(self.shots)})"


def shots_name(shots: float) -> int | str:
    """Return a number of shots as scripts and folders have it: 16, or ``all``."""
    return "all" if shots == math.inf else int(shots)


def shots_phrase(shots: float) -> str:
    """Return a number of shots in words: ``zero-shot``, ``1 shot``, ``all shots``."""
    return f"{shots_name(shots)} shot{'' if shots == 1 else 's'}" if shots else "zero-shot"


@dataclass
class Runs:
    """The runs of a method on a data set.

    ``by_seed`` is metric -> seed -> percent, and ``results`` -> what was read of that run;
    ``facts`` has for every argument, config key and ``parameters`` (``record.facts_of``) the values
    that they show.
    """

    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    facts: dict[str, set[str]] = field(default_factory=dict)
    results: dict[str, dict[int, RunResult]] = field(default_factory=dict)


# protocol -> data set -> method -> its runs
Scores = dict[str, dict[str, dict[Method, Runs]]]


def layout_root(run: Path) -> Path | None:
    """Return the folder below which a run folder lies in the layout of a protocol; None if none."""
    for folder in run.parents:
        name = run.relative_to(folder).as_posix()
        if any(re.fullmatch(layout, name) for layout in LAYOUTS.values()):
            return folder
    return None


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
    counted: dict[tuple, Path] = {}
    files = (file for name in ("log.txt*", FILE) for file in output.rglob(name))
    names = {file.parent.relative_to(output).as_posix() for file in files}
    # Tests first (test_base before train_base by name): of two results that of the training counts.
    tests_only = ("evaluation/", "few_shot/")
    for name in sorted(names, key=lambda name: (not name.startswith(tests_only), name)):
        folder = output / name
        matches = [(k, m) for k, layout in LAYOUTS.items() if (m := re.fullmatch(layout, name))]
        if not matches:
            note(f"skipped: {folder}: not the layout of a known protocol")
            continue
        layout, match = matches[0]
        place = match.groupdict()
        part, dataset = place.get("part"), place["dataset"]
        tests = part in ("test_base", "test_new") or layout in ("evaluation", "zeroshot")
        try:
            result = read_result(folder, keyword, True if tests else None)
        except BadLog as reason:
            note(f"skipped: {reason}")
            continue
        value, facts = result.value, result.facts
        protocol, source, shots = "base2new", "", place.get("shots", 0)
        shots = math.inf if shots == "all" else int(shots)
        if layout != "base2new":
            zero_shot = layout == "zeroshot" or facts.get("parameters") == "0"
            shots = 0 if zero_shot else shots
            if layout == "evaluation":
                source = place["source"] or "imagenet"
            if zero_shot and dataset in VARIANTS:
                source = "imagenet"
            if source in ("", dataset):
                protocol, source = "fewshot", ""
            else:
                protocol = "dg" if dataset in VARIANTS else "cross"
        method = Method(match["trainer"], match["config"] + place.get("extra", ""), shots, source)
        runs = scores[protocol][dataset][method]
        by_seed, seed = runs.by_seed.setdefault(PARTS[part], {}), int(place.get("seed", 0))
        place_of = (protocol, dataset, method, PARTS[part], seed)
        # logs are rounded
        if round(by_seed.get(seed, value), 2) != round(value, 2):
            note(f"left out: {counted[place_of]}: {folder} has the same place, and counts")
        counted[place_of], by_seed[seed] = folder, value
        runs.results.setdefault(PARTS[part], {})[seed] = result
        for key, fact in facts.items():
            runs.facts.setdefault(key, set()).add(fact)
    return scores
