"""CONTRIBUTING.md's "How to add ...", followed to the letter in a copy of the repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from clip.loading import load_state_dict
from tests.datasets.miniatures import class_folders
from tests.recipes import ROOT, read_recipes
from tests.test_checklist import PLACES


@dataclass(frozen=True)
class Outcome:
    """What has to come out of a section.

    Args:
        row: part of a row of the tables, by names of columns.
        logged: what a log says, by the part of its path that tells it from others.
        tests: of the repository, that take in what was added.
        missing: places that the test of the checklists then asks for, and what for.
    """

    row: dict[str, object]
    logged: dict[str, str]
    tests: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)


CONTRACT = "tests/trainers/test_contract.py::test_"
FORWARDERS = "tests/scripts/test_forwarders.py::test_"
OUTCOMES = {
    "method": Outcome(
        row={"protocol": "base2new", "trainer": "MyMethod", "config": "tiny", "dataset": "digits"}
        | {"shots": 1, "parameters": 4 * (64 + 128)},
        logged={"test_new/digits/shots_1/MyMethod": "WEIGHT: 10.0\n"},
        tests=(
            f"{FORWARDERS}every_method_has_every_protocol",
            f"{FORWARDERS}forwarders_are_identical",
            "tests/scripts/test_methods.py::test_shipped_files[mymethod]",
            "tests/scripts/test_methods.py::test_every_trainer_has_scripts",
            # what a method is most likely to break
            f"{CONTRACT}resumed_run_equals_a_straight_one[MyMethod]",
            f"{CONTRACT}text_is_encoded_once_per_evaluation[MyMethod]",
            "tests/test_train.py::test_config_of_one_method_for_another[MyMethod]",
        ),
        missing={
            "README.md": "MyMethod",
            "trainers/mymethod.py": "MyMethod",
            "results/plots.py": "MyMethod",
            "tests/benchmarks/test_parameters.py": "MyMethod",
            "benchmarks/results/methods.jsonl": "MyMethod",
        },
    ),
    "data set": Outcome(
        row={"protocol": "fewshot", "trainer": "MMLoP", "dataset": "mybirds", "shots": 2},
        logged={
            "test_new/mybirds": "Templates: ('a photo of a {}, a type of bird.',)\n",
            "mybirds/MMLoP": "split_MyBirds.json",
        },
        missing={"docs/datasets.md": "mybirds"},
    ),
    "backbone": Outcome(
        row={"protocol": "fewshot", "trainer": "MMLoP", "config": "my_vit-OPTIM.MAX_EPOCH=1"}
        | {"dataset": "digits", "shots": 1},
        logged={
            "MMLoP/my_vit": "Loading CLIP (backbone: MyViT)\n",
            "ZeroshotCLIP/tiny": "Loading CLIP (backbone: my_vit.pt)\n",
        },
    ),
    "protocol": Outcome(
        row={"protocol": "new2base", "trainer": "CoOp", "dataset": "digits"},
        logged={"turned/test/digits": "SUBSAMPLE BASE CLASSES!\n"},
        tests=("tests/scripts/test_protocols.py::test_folders_are_read_as_they_are_written",),
        missing={"docs/protocols.md": "new2base_test, new2base_train"},
    ),
}


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository, with pictures of birds and the file of a backbone."""
    folder = tmp_path / "copy"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    class_folders(folder / "data" / "mybirds" / "images", ["barn_owl", "kingfisher"], 8)
    torch.save(load_state_dict("tiny"), folder / "my_vit.pt")
    shutil.copy(folder / "my_vit.pt", os.environ["CLIP_CACHE"])  # as after a download
    return folder


def call(folder: Path, *command: str) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "SHOTS": "1"}
    env |= {name: os.environ[name] for name in ("CLIP_CACHE", "DASSL_CACHE")}
    env |= {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)


def run(folder: Path, *command: str) -> str:
    done = call(folder, *command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_recipes_work_as_written(copy):
    """All in one copy, one after the other: what one adds does not disturb the others."""
    recipes = read_recipes()
    assert recipes.keys() == OUTCOMES.keys()
    sha256 = hashlib.sha256((copy / "my_vit.pt").read_bytes()).hexdigest()
    for recipe in recipes.values():
        recipe.write(copy, SHA256=sha256)
        run(copy, "bash", "-e", "-c", recipe.commands)

    rows = json.loads(run(copy, sys.executable, "parse_test_res.py", "--format", "json"))
    logs = {str(path): path.read_text() for path in copy.glob("output/**/log.txt")}
    for added, outcome in OUTCOMES.items():
        assert any(outcome.row.items() <= row.items() for row in rows), (added, rows)
        for part, words in outcome.logged.items():
            assert any(part in path and words in text for path, text in logs.items()), (added, part)

    # the repository's tests take it all in; those of the checklists ask for the rest
    names = [name for outcome in OUTCOMES.values() for name in outcome.tests]
    words = ("-m", "pytest", "-p", "no:cacheprovider", *names, "tests/test_checklist.py")
    said = call(copy, sys.executable, *words).stdout
    asked = re.findall(r"^E +AssertionError: (\S+): .*, for (.*)$", said, re.MULTILINE)
    missing = {p: what for outcome in OUTCOMES.values() for p, what in outcome.missing.items()}
    assert dict(asked) == missing, said[-3000:]
    passed = len(names) + len(PLACES) - len(missing)
    assert f"{len(missing)} failed, {passed} passed" in said
