"""The shipped scripts in a folder of their own, around an interpreter that only writes logs."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import scripts.run
import scripts.upstream

ROOT = Path(__file__).parents[2]
# What scripts read from the environment.
VARIABLES = "DATA OUTPUT SHOTS SOURCE CFG TAG WEIGHTS SUBFOLDER PYTHON DRY_RUN OMP_NUM_THREADS"
# Stands in for .venv/bin/python: notes every call, and trains and tests in no time. Where SLOW is
# in the output folder it takes TAKES seconds, or until there is a file go-on, and SIGTERM has it
# save and end. BREAK in the environment is the part of an output folder whose run fails; ENDS is
# JSON, for such parts the statuses that their runs end with in turn.
INTERPRETER = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
with open("calls.txt", "a") as calls:
    calls.write(" ".join(words) + "\\n")
if words[0] == "train.py":
    option = dict(zip(words[1::], words[2::]))
    if os.environ.get("BREAK", "no such folder") in option["--output-dir"]:
        sys.exit("the reason")
    for part, statuses in json.loads(os.environ.get("ENDS", "{{}}")).items():
        if part in option["--output-dir"]:
            before = pathlib.Path("calls.txt").read_text().count(option["--output-dir"] + " ") - 1
            if before < len(statuses):
                print("ended", statuses[before])
                sys.exit(statuses[before])
    saved = pathlib.Path(option["--output-dir"], "saved")
    if os.environ.get("SLOW", "") in option["--output-dir"] and not saved.exists():
        def save(*_):
            saved.touch()
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
        end = time.time() + float(os.environ.get("TAKES", 0))
        while time.time() < end and not os.path.exists("go-on"):
            time.sleep(0.01)
    print("** Arguments **")
    for seed in (option.get("--seeds") or option["--seed"]).split(","):
        folder = pathlib.Path(option["--output-dir"].replace("{{seed}}", seed))
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["eval_only: True"] if "--eval-only" in words else ["Finish training"]
        lines += ["=> result", "* accuracy: 6" + seed + ".00%", ""]
        (folder / "log.txt").write_text("\\n".join(lines))
elif words[0].endswith(".py"):
    os.execv({sys.executable!r}, [{sys.executable!r}, *words])
"""


@pytest.fixture
def wait_for():
    """Function that waits until another one returns something, and returns that."""

    def wait_for(happens: Callable[[], Any]) -> Any:
        deadline = time.time() + 180
        while not (found := happens()):
            assert time.time() < deadline
            time.sleep(0.01)
        return found

    return wait_for


@pytest.fixture
def call(monkeypatch, capfd):
    """Function that calls what a script calls, in this process, and returns what came of it.

    Of the variables that scripts read only those given are set, and ``PYTHON``.
    """

    def call(
        script: str, *words: str, cwd: Path = ROOT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        for name in VARIABLES.split():
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"PYTHON": "python"} | env).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(cwd)
        folder, name = script.split("/")
        forwarder = ROOT / "scripts" / f"{script}.sh"
        if forwarder.is_file() and "/../upstream.sh" in forwarder.read_text():
            status = scripts.upstream.main([str(cwd), folder, name, *words])
        else:
            status = scripts.run.main([folder, name, *words])
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(words, status, printed.out, printed.err)

    return call


@pytest.fixture
def dry_run(call):
    """Function that returns the words of every command that a script would run."""

    def dry_run(script: str, *words: str, **env) -> list[list[str]]:
        done = call(script, *words, DRY_RUN="1", **env)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]

    return dry_run


@pytest.fixture
def stand_in(tmp_path):
    """Function that makes an interpreter that does what a shell command says."""

    def make(body: str) -> str:
        program = tmp_path / "python-stand-in"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        return str(program)

    return make


@dataclass
class Clone:
    """A copy of the shipped scripts, set up already."""

    folder: Path

    def call(self, script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
        """Run a script from elsewhere, in an environment that holds no more than ``env``."""
        with self.start(script, *words, **env) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, script: str, *words: str, **env: str) -> subprocess.Popen:
        """Start a script as ``call`` does."""
        clean = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}
        return subprocess.Popen(
            ["bash", str(self.folder / script), *words],
            cwd="/",
            env=clean | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tables(self, *words: str) -> str:
        """What parse_test_res.py prints of the results."""
        command = [sys.executable, self.folder / "parse_test_res.py", *words]
        return subprocess.check_output(command, cwd=self.folder, text=True)

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
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, tmp_path)
        shutil.copy(file, tmp_path / ".venv")
    for name in ("parse_test_res.py", "protocols.py", "dassl/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("results", "support", "dassl/config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (programs / "python").write_text(INTERPRETER)
    (programs / "python").chmod(0o755)
    return Clone(tmp_path)
