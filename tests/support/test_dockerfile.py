"""The Dockerfile's steps, done in a folder: no daemon is needed, and no package installed.

What is copied, the commands and the environment are those of the file; ``pip`` notes its words.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text("utf-8")
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their words."""
    lines = "".join(line for line in TEXT.splitlines(True) if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "EXPOSE", "CMD"}
    assert {name for name, _ in found} <= known
    return [(name, words) for name, words in found]


def is_ignored(path: str) -> bool:
    """Return whether .dockerignore leaves out a file; ``**/`` stands for any folders, or none."""
    parts = path.split("/")
    tops = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(
        fnmatch.fnmatchcase(top if not pattern.startswith("**/") else top.rpartition("/")[2], name)
        for pattern in IGNORED
        for name in [pattern.removeprefix("**/")]
        for top in tops
    )


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The files of the repository, and some that lie beside them on a user's machine."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        (".git/config", True),
        (".venv/lib/site-packages/torch/__init__.py", True),
        ("data/digits/images/0.png", True),
        ("output/a/log.txt", True),
        ("clip/__pycache__/clip.pyc", True),
        ("mmlop.egg-info/PKG-INFO", True),
        ("tests/conftest.py", True),
        ("clip/weights/tiny.safetensors", False),
        ("dassl/data/datasets/__init__.py", False),
        ("configs/datasets/digits.yaml", False),
    ],
)
def test_what_is_left_out(path, left_out):
    assert is_ignored(path) == left_out


@pytest.mark.parametrize("index", ["", "https://wheels.example/cpu"])
def test_the_packages_of_the_requirements_are_installed(tmp_path, index):
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, tmp_path)
    (tmp_path / "bin").mkdir()
    pip = tmp_path / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    pip.chmod(0o755)
    arguments = dict(w.split("=", 1) for name, w in instructions() if name == "ARG")
    env = {name: value.strip('"') for name, value in arguments.items()} | {"TORCH_INDEX": index}
    (step,) = (words for name, words in instructions() if name == "RUN" and "pip install" in words)
    step = step.replace("/tmp/torch.txt", f"{tmp_path}/torch.txt")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", step], cwd=tmp_path, env=env | {"PATH": path}, check=True)
    said = (tmp_path / "said").read_text().splitlines()
    wanted = ["install -r requirements.txt", "install -r requirements-deploy.txt"]
    if index:
        wanted.insert(0, f"install --index-url {index} -r {tmp_path}/torch.txt")
        torch = (tmp_path / "torch.txt").read_text().splitlines()
        assert [line.split(">")[0] for line in torch] == ["torch", "torchvision"]
    assert said == wanted


def test_what_is_copied_trains_and_tests(tmp_path, files):
    place = tmp_path / "toolbox"
    for name, words in instructions():
        if name == "COPY" and words != ". .":
            assert words == "requirements*.txt ./" and list(ROOT.glob("requirements*.txt"))
    assert ("COPY", ". .") in instructions()
    for name in files:
        if not is_ignored(name):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    (folders,) = (words for name, words in instructions() if name == "RUN" and "mkdir" in words)
    cache = tmp_path / "cache"
    subprocess.run(["sh", "-c", folders.replace("/cache", str(cache))], cwd=place, check=True)
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for words in (words for name, words in instructions() if name == "ENV"):
        env |= dict(word.split("=", 1) for word in words.replace("/cache", str(cache)).split())

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (last,) = (words for name, words in instructions() if name == "CMD")
    assert "Train or test one trainer" in call(*json.loads(last))
    call("bash", "scripts/coop/fewshot.sh", "digits", "1", "1", "OPTIM.MAX_EPOCH", "1")
    assert "| CoOp " in call("python", "parse_test_res.py")
    assert (cache / "dassl").is_dir()
