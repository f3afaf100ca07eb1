"""All runs below an output folder, by protocol, data set, method and seed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .logs import BadLog, read_run

# Run folders below the output folder, by protocol; the first that fits counts.
LAYOUTS = {
    "base2new": r"base2new/(?P<part>train_base|test_base|test_new)/(?P<dataset>[^/]+)"
    r"/shots_(?P<shots>\d+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)/seed(?P<seed>\d+)",
    "cross": r"evaluation/(?P<trainer>[^/]+)/(?P<config>[^/]+)_(?P<shots>\d+)shots"
    r"(?P<extra>(/[^/]+)*)/(?P<dataset>[^/]+)/seed(?P<seed>\d+)",
    "fewshot": r"(few_shot/)?(?P<dataset>[^/]+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)"
    r"_(?P<shots>\d+)shots(?P<extra>(/[^/]+)*)/seed(?P<seed>\d+)",
}
TITLES = {
    "base2new": "Base-to-new",
    "cross": "Tested on other data sets",
    "fewshot": "Few-shot",
}
# The training run tests on base itself; test_base is for weights that were trained elsewhere.
PARTS = {"train_base": "base", "test_base": "base", "test_new": "new", None: "accuracy"}
METRICS = {"base2new": ("base", "new"), "cross": ("accuracy",), "fewshot": ("accuracy",)}


@dataclass(frozen=True, order=True)
class Method:
    """A row of a table: one trainer in one configuration."""

    trainer: str
    config: str
    shots: int

    def __str__(self) -> str:
        return f"{self.trainer} {self.config} ({self.shots} shots)"


# protocol -> data set -> method -> metric -> seed -> percent
Scores = dict[str, dict[str, dict[Method, dict[str, dict[int, float]]]]]


def collect(output: Path, keyword: str, note: Callable[[str], None]) -> Scores:
    """Return all finished results below a folder.

    Args:
        output: folder in the layout of the scripts (and of upstream's).
        keyword: the metric.
        note: called with one line for every run that does not count.
    """
    scores: Scores = {p: defaultdict(lambda: defaultdict(dict)) for p in LAYOUTS}
    # test_base comes before train_base, so that of two base accuracies that of the training counts.
    for folder in sorted({log.parent for log in output.rglob("log.txt*")}):
        name = folder.relative_to(output).as_posix()
        matches = [(p, m) for p, layout in LAYOUTS.items() if (m := re.fullmatch(layout, name))]
        if not matches:
            note(f"skipped: {folder}: not the layout of a known protocol")
            continue
        protocol, match = matches[0]
        part = match.groupdict().get("part")
        test_log = True if part in ("test_base", "test_new") or protocol == "cross" else None
        try:
            _, value = read_run(folder, keyword, test_log)
        except BadLog as reason:
            note(f"skipped: {reason}")
            continue
        config = match["config"] + match.groupdict().get("extra", "")
        method = Method(match["trainer"], config, int(match["shots"]))
        metrics = scores[protocol][match["dataset"]][method]
        metrics.setdefault(PARTS[part], {})[int(match["seed"])] = value
    return scores
