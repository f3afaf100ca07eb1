"""CONTRIBUTING.md's checklists: places that name what there is, where it cannot be derived."""

from __future__ import annotations

import json
import re

import pytest

import trainers  # noqa: F401  registers the methods
from adaptation.trainer import PromptTrainer
from dassl.engine import TRAINER_REGISTRY
from protocols import scripts
from results.plots import LOOKS
from scripts.listing import methods
from scripts.methods import DATASETS, stems
from tests.benchmarks.test_parameters import EXPECTED
from tests.parity.test_methods import steps
from tests.parity_files import Recorded
from tests.recipes import ROOT
from tests.tools.test_to_upstream import METHODS as WRITTEN_AS_UPSTREAM
from tools.to_upstream import LAYOUTS

CHECKLISTS = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
METHODS = {
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), PromptTrainer)
    and TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
}
SCRIPTS = {script.name for script in scripts().values() if script.does}


def names_in(page: str, pattern: str) -> set[str]:
    return set(re.findall(pattern, (ROOT / page).read_text("utf-8")))


def compared() -> set[str]:
    file = ROOT / "benchmarks/results/methods.jsonl"
    return {json.loads(line)["method"] for line in file.read_text("utf-8").splitlines()}


#: (place, what is to be done there) -> what has to be in it, and what is
PLACES = {
    ("trainers/mymethod.py", "its paper in the docstring, below the first line"): (
        METHODS,
        {method.name for method in methods() if method.paper},
    ),
    ("README.md", "a row in the table of methods"): (
        METHODS,
        names_in("README.md", r"(?<=[|,] )`(\w+)`(?=[^\n]*\|\n)"),
    ),
    ("results/plots.py", "its look at the end of LOOKS"): (METHODS, {*LOOKS}),
    ("tests/benchmarks/test_parameters.py", "its number of parameters in EXPECTED"): (
        METHODS,
        {method for method, _ in EXPECTED},
    ),
    ("benchmarks/results/methods.jsonl", "run python -m benchmarks.methods"): (
        METHODS,
        compared(),
    ),
    ("tools/to_upstream.py", "what its published code saves, in LAYOUTS"): (
        {Recorded(name).config["trainer"] for name in steps()},
        {*LAYOUTS},
    ),
    ("tests/tools/test_to_upstream.py", "the keys of its published files, in METHODS"): (
        {*LAYOUTS},
        {*WRITTEN_AS_UPSTREAM},
    ),
    ("docs/datasets.md", "a row in the table of data sets"): (
        {*stems(DATASETS)},
        names_in("docs/datasets.md", r"`(\w+)`"),
    ),
    ("docs/protocols.md", "a row in the table of protocols"): (
        SCRIPTS,
        names_in("docs/protocols.md", r"\| `(\w+)\.sh "),
    ),
}


@pytest.mark.parametrize(("place", "to_do"), PLACES, ids=lambda value: value.replace(" ", "_"))
def test_nothing_is_missing(place, to_do):
    wanted, there = PLACES[place, to_do]
    assert f"`{place}`" in CHECKLISTS
    missing = ", ".join(sorted(wanted - there))
    assert not missing, f"{place}: {to_do}, for {missing}"
