"""quickstart.sh and both test scripts around an interpreter that only logs; setup.sh's checks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
N_RUNS = 2 * (3 * 2 + 2 * (1 + 3))
INSTALL = "-m pip install --disable-pip-version-check -r requirements.txt"


def test_quickstart_prints_the_table_and_runs_once(clone):
    done = clone.call("scripts/quickstart.sh", JOBS="2", DATA="/elsewhere", TAG="other")
    assert done.returncode == 0, done.stderr
    for dataset in ("digits", "letters", "average of digits, letters"):
        section = done.stdout.split(f"### Base-to-new, {dataset} ")[1].split("###")[0]
        for trainer in ("ZeroshotCLIP", "CoOp", "MMLoP"):
            (row,) = (line for line in section.splitlines() if f"| {trainer} " in line)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[1:4] == ["tiny", "0" if trainer == "ZeroshotCLIP" else "16", "3"]
            assert cells[4:6] == ["62.00 ± 0.82"] * 2
    runs = clone.runs()
    # two data sets: zero-shot base and new with three seeds; two methods trained with all seeds
    # together and tested one by one
    assert len(runs) == len(set(runs)) == N_RUNS
    assert all("--root data " in run for run in runs)
    again = clone.call("scripts/quickstart.sh")
    assert again.returncode == 0
    assert clone.runs() == runs
    assert again.stdout[again.stdout.index("###") :] == done.stdout[done.stdout.index("###") :]


def test_a_failing_run_fails_the_quickstart(clone):
    done = clone.call("scripts/quickstart.sh", JOBS="1", BREAK="digits/shots_16/MMLoP/tiny/seed2")
    assert done.returncode != 0
    assert "error: mmlop base2new_test digits seed 1,2,3 failed: the reason" in done.stderr
    assert "###" not in done.stdout
    # What was finished is kept, and the rest follows.
    assert clone.call("scripts/quickstart.sh").returncode == 0
    runs = clone.runs()
    assert len(runs) == N_RUNS + 2, "a sweep tries what failed once more"


def test_quickstart_has_a_run_on_every_core(clone):
    """However many threads a run is to have."""
    cores = min(8, len(os.sched_getaffinity(0)))
    env = {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "BREAK": "ZeroshotCLIP"}
    done = clone.call("scripts/quickstart.sh", **env)
    assert f"seeds 1 2 3, {cores} at a time" in done.stdout


@pytest.mark.parametrize("script", ["test.sh", "test_lowest.sh"])
def test_test_scripts_lint_then_test(clone, script):
    if script == "test_lowest.sh":
        (clone.folder / ".venv").rename(clone.folder / ".venv-lowest")
    done = clone.call(f"scripts/{script}", "-k", "one")
    assert done.returncode == 0, done.stderr
    assert clone.calls() == [
        "-m pip --version",
        "-m ruff check .",
        *(["-m mypy"] if script == "test.sh" else []),
        "-m pytest -n 2 --dist worksteal -k one",
    ]


def test_ci_runs_the_tests():
    assert "bash scripts/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_changed_requirements_are_installed_once(clone):
    with open(clone.folder / "requirements.txt", "a") as file:
        file.write("# changed\n")
    for _ in range(2):
        assert clone.call("scripts/setup.sh").returncode == 0
    assert clone.calls() == ["-m pip --version", INSTALL, "-m pip --version"]


def test_packages_for_the_tests_are_compiled_when_they_are_imported(clone):
    """Where Python keeps what it compiled."""
    for forbidden in ("", "1"):
        with open(clone.folder / "requirements.txt", "a") as file:
            file.write("# changed\n")
        done = clone.call("scripts/setup.sh", "dev", PYTHONDONTWRITEBYTECODE=forbidden)
        assert done.returncode == 0, done.stderr
    compiled_later = INSTALL.replace(" -r ", " --no-compile -r ")
    assert [call for call in clone.calls() if "install" in call] == [compiled_later, INSTALL]


def test_lowest_versions_are_installed_by_uv_once(clone):
    shutil.copytree(clone.folder / ".venv", clone.folder / ".venv-lowest")
    with open(clone.folder / "requirements.txt", "a") as file:
        file.write("# changed\n")
    for _ in range(2):
        assert clone.call("scripts/setup.sh", "lowest").returncode == 0
    first, fetch_uv, install, again = clone.calls()
    assert first == again == "-m pip --version"
    assert fetch_uv.startswith("-m pip install ") and "uv" in fetch_uv
    assert install.startswith("-m uv pip install --python .venv-lowest/bin/python ")
    assert "--resolution lowest-direct" in install and install.endswith("-r requirements.txt")
    # the other environment is left to the other call
    assert clone.call("scripts/setup.sh").returncode == 0
    assert clone.calls()[-1] == INSTALL


def test_every_requirement_has_bounds():
    """The lower one is what test_lowest.sh tries; the upper one keeps out what nobody tried."""
    for file in ROOT.glob("requirements*.txt"):
        for line in file.read_text().splitlines():
            other = line.startswith(("#", "-r requirements"))
            assert other or re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", line), (file.name, line)


def test_setup_refuses_a_word_that_it_does_not_know(clone):
    done = clone.call("scripts/setup.sh", "lowst")
    assert done.returncode == 2
    assert done.stderr == "error: setup.sh takes deploy, dev, lowest or nothing, not 'lowst'\n"


def test_setup_creates_an_environment(clone):
    shutil.rmtree(clone.folder / ".venv")
    for file in clone.folder.glob("requirements*.txt"):
        file.write_text("")  # nothing to fetch
    done = clone.call("scripts/setup.sh", "dev")
    assert done.returncode == 0, done.stderr
    assert "Creating .venv" in done.stdout
    assert (clone.folder / ".venv/bin/python").exists()
    again = clone.call("scripts/setup.sh", "dev")
    assert (again.returncode, again.stdout) == (0, "")


def test_setup_refuses_an_old_python(clone, tmp_path):
    shutil.rmtree(clone.folder / ".venv")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "cmp", "flock"):
        found = shutil.which(name)
        if found:
            (programs / name).symlink_to(found)
    old = programs / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = clone.call("scripts/setup.sh", PATH=str(programs))
    assert done.returncode == 2
    assert done.stderr == "error: Python 3.10 or newer is needed; found Python 3.9.18\n"
