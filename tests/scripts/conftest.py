"""The shipped scripts in a folder of their own, around an interpreter that only writes logs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in for .venv/bin/python: notes every call, and trains and tests in no time. BREAK in the
# environment is the part of an output folder whose run fails.
INTERPRETER = f"""#!{sys.executable}
import os, pathlib, sys
words = sys.argv[1:]
with open("calls.txt", "a") as calls:
    calls.write(" ".join(words) + "\\n")
if words[0] == "train.py":
    option = dict(zip(words[1::], words[2::]))
    if os.environ.get("BREAK", "no such folder") in option["--output-dir"]:
        sys.exit("the reason")
    print("** Arguments **")
    for seed in (option.get("--seeds") or option["--seed"]).split(","):
        folder = pathlib.Path(option["--output-dir"].replace("{{seed}}", seed))
        folder.mkdir(parents=True)
        lines = ["eval_only: True"] if "--eval-only" in words else ["Finish training"]
        lines += ["=> result", "* accuracy: 6" + seed + ".00%", ""]
        (folder / "log.txt").write_text("\\n".join(lines))
elif words[0] in ("parse_test_res.py", "scripts/all.py", "scripts/effective.py"):
    os.execv({sys.executable!r}, [{sys.executable!r}, *words])
"""


@dataclass
class Clone:
    """A copy of the shipped scripts, set up already."""

    folder: Path

    def call(self, script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
        """Run a script from elsewhere, in an environment that holds no more than ``env``."""
        clean = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            ["bash", str(self.folder / script), *words],
            cwd="/",
            env=clean | env,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def calls(self) -> list[str]:
        """What the interpreter was called with so far."""
        return (self.folder / "calls.txt").read_text().splitlines()

    def runs(self) -> list[str]:
        """The calls that train or test."""
        return [line for line in self.calls() if line.startswith("train.py")]


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
    for name in ("parse_test_res.py", "dassl/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("results", "support", "dassl/config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (programs / "python").write_text(INTERPRETER)
    (programs / "python").chmod(0o755)
    return Clone(tmp_path)
