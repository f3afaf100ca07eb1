"""README's "How to add a method", followed to the letter in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository, with the files of the recipe in it."""
    folder = tmp_path_factory.mktemp("recipe") / "copy"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    recipe = (ROOT / "README.md").read_text().split("## How to add a method\n")[1].split("\n## ")[0]
    names = re.findall(r"`((?:trainers|configs)/\S+)`[:,]", recipe)
    blocks = re.findall(r"^ *```\w+\n(.*?)^ *```", recipe, re.DOTALL | re.MULTILINE)
    for name, text in zip([*names, "commands.sh"], blocks, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "SHOTS": "1"}
    env |= {name: os.environ[name] for name in ("CLIP_CACHE", "DASSL_CACHE")}
    env |= {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def test_the_recipe_works_as_written(copy):
    run(copy, "bash", "-e", "commands.sh")
    output = run(copy, sys.executable, "parse_test_res.py", "--format", "json").stdout
    (row,) = json.loads(output)
    assert (row["trainer"], row["config"], row["dataset"]) == ("MyMethod", "tiny", "digits")
    assert row["parameters"] == 4 * 64 and row["H"] > 0
    log = next(copy.glob("output/base2new/test_new/**/log.txt")).read_text()
    assert "  MINE:\n" in log and "SMOOTHING: 0.1\n" in log
    # the tests of the repository take it in
    names = ["tests/scripts/test_forwarders.py::test_every_method_has_every_protocol"]
    names += ["tests/scripts/test_forwarders.py::test_forwarders_are_identical"]
    names += ["tests/scripts/test_methods.py::test_shipped_files[mymethod]"]
    names += [f"tests/trainers/test_contract.py::test_{name}[MyMethod]" for name in CONTRACT]
    names += ["tests/test_train.py::test_config_of_one_method_for_another[MyMethod]"]
    passed = run(copy, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *names).stdout
    assert f"{len(names)} passed" in passed


#: of the contract, what a method is most likely to break
CONTRACT = ("resumed_run_equals_a_straight_one", "text_is_encoded_once_per_evaluation")
