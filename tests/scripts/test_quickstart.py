"""quickstart.sh and test.sh around an interpreter that only writes logs, and setup.sh's checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in for .venv/bin/python: notes every call, and trains and tests in no time.
INTERPRETER = f"""#!{sys.executable}
import os, pathlib, sys
words = sys.argv[1:]
with open("calls.txt", "a") as calls:
    calls.write(" ".join(words) + "\\n")
if words[0] == "train.py":
    option = dict(zip(words[1::], words[2::]))
    if os.environ.get("BREAK", "no such folder") in option["--output-dir"]:
        sys.exit("the reason")
    folder = pathlib.Path(option["--output-dir"])
    folder.mkdir(parents=True)
    lines = ["eval_only: True"] if "--eval-only" in words else ["Finish training"]
    lines += ["=> result", "* accuracy: 6" + option["--seed"] + ".00%", ""]
    (folder / "log.txt").write_text("\\n".join(lines))
elif words[0] == "parse_test_res.py":
    os.execv({sys.executable!r}, [{sys.executable!r}, *words])
"""


@pytest.fixture
def clone(tmp_path):
    """The shipped scripts in an empty folder, set up already."""
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        shutil.copy(ROOT / name, tmp_path / ".venv" / name)
    shutil.copy(ROOT / "parse_test_res.py", tmp_path)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (programs / "python").write_text(INTERPRETER)
    (programs / "python").chmod(0o755)
    return tmp_path


def call(clone: Path, script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    clean = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        ["bash", str(clone / script), *words],
        cwd="/",
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def calls(clone: Path) -> list[str]:
    return (clone / "calls.txt").read_text().splitlines()


def test_quickstart_prints_the_table_and_runs_once(clone):
    done = call(clone, "scripts/quickstart.sh", JOBS="2", DATA="/elsewhere", TAG="other")
    assert done.returncode == 0, done.stderr
    for dataset in ("digits", "shapes", "average of digits, shapes"):
        section = done.stdout.split(f"### Base-to-new, {dataset} ")[1].split("###")[0]
        for trainer in ("ZeroshotCLIP", "CoOp", "MMLoP"):
            (row,) = (line for line in section.splitlines() if f"| {trainer} " in line)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[1:4] == ["tiny", "16", "3"]
            assert cells[4:6] == ["62.00 ± 0.82"] * 2
    runs = [line for line in calls(clone) if line.startswith("train.py")]
    # three methods, two data sets, three seeds, base and new
    assert len(runs) == len(set(runs)) == 3 * 2 * 3 * 2
    assert all("--root data " in run for run in runs)
    again = call(clone, "scripts/quickstart.sh")
    assert again.returncode == 0
    assert [line for line in calls(clone) if line.startswith("train.py")] == runs
    assert again.stdout[again.stdout.index("###") :] == done.stdout[done.stdout.index("###") :]


def test_a_failing_run_fails_the_quickstart(clone):
    done = call(clone, "scripts/quickstart.sh", JOBS="1", BREAK="digits/shots_16/MMLoP/tiny/seed2")
    assert done.returncode != 0
    assert "error: mmlop on digits, seed 2 failed" in done.stderr
    assert "the reason" in done.stderr
    assert "###" not in done.stdout
    # What was finished is kept, and the rest follows.
    assert call(clone, "scripts/quickstart.sh").returncode == 0
    runs = [line for line in calls(clone) if line.startswith("train.py")]
    assert len(runs) == 3 * 2 * 3 * 2 + 1


def test_test_sh_lints_then_tests(clone):
    done = call(clone, "scripts/test.sh", "-k", "one")
    assert done.returncode == 0, done.stderr
    assert calls(clone) == [
        "-m pip --version",
        "-m ruff check .",
        "-m pytest -n 2 -k one",
    ]


def test_ci_runs_the_tests():
    assert "bash scripts/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_changed_requirements_are_installed_once(clone):
    with open(clone / "requirements.txt", "a") as file:
        file.write("# changed\n")
    for _ in range(2):
        assert call(clone, "scripts/setup.sh").returncode == 0
    install = "-m pip install --disable-pip-version-check -r requirements.txt"
    assert calls(clone) == ["-m pip --version", install, "-m pip --version"]


def test_setup_creates_an_environment(clone):
    shutil.rmtree(clone / ".venv")
    for name in ("requirements.txt", "requirements-dev.txt"):
        (clone / name).write_text("")  # nothing to fetch
    done = call(clone, "scripts/setup.sh", "dev")
    assert done.returncode == 0, done.stderr
    assert "Creating .venv" in done.stdout
    assert (clone / ".venv/bin/python").exists()
    again = call(clone, "scripts/setup.sh", "dev")
    assert (again.returncode, again.stdout) == (0, "")


def test_setup_refuses_an_old_python(clone, tmp_path):
    shutil.rmtree(clone / ".venv")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "cmp", "flock"):
        found = shutil.which(name)
        if found:
            (programs / name).symlink_to(found)
    old = programs / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = call(clone, "scripts/setup.sh", PATH=str(programs))
    assert done.returncode == 2
    assert done.stderr == "error: Python 3.10 or newer is needed; found Python 3.9.18\n"
