"""``pip install -e .``, and other projects' packages of the same names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trainers
from adaptation.version import __version__
from tests.conftest import ROOT
from tests.test_layers import ALLOWED


def imported(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess:
    """Run code in a folder, with the toolbox at the end of the path, as an installation puts it."""
    code = f"import sys; sys.path.append({str(ROOT)!r})\n{code}"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_what_methods_are_made_of_is_checked():
    needed, more = set(), {"trainers"}
    while more:
        needed |= more
        more = set().union(*(ALLOWED[name] for name in more)) - needed
    assert needed - {"trainers"} == set(trainers.NEEDED)


def test_an_installation_puts_the_folder_on_the_path(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.suffix != ".egg-info":
            (copy / path.name).symlink_to(path)
    code = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("mmlop-*.whl"))) as wheel:
        contents = {name: wheel.read(name).decode() for name in wheel.namelist()}
    (path,) = (text for name, text in contents.items() if name.endswith(".pth"))
    assert path.strip() == str(copy)
    (metadata,) = (text for name, text in contents.items() if name.endswith("/METADATA"))
    assert f"\nVersion: {__version__}\n" in metadata and "\nRequires-Dist: torch" in metadata


@pytest.mark.parametrize(("name", "how"), [("datasets", "found first"), ("clip", "imported")])
def test_a_package_of_another_project_is_named(tmp_path, name, how):
    (tmp_path / "theirs" / name).mkdir(parents=True)
    theirs = tmp_path / "theirs" / name / "__init__.py"
    theirs.write_text("")
    first = f"import {name}\n" if how == "imported" else ""
    path = str(tmp_path / "theirs")
    done = imported(tmp_path, f"{first}from trainers import Predictor", PYTHONPATH=path)
    line = done.stderr.splitlines()[-1]
    for part in (f"ImportError: the toolbox in {ROOT}", str(theirs), how, f"PYTHONPATH={ROOT}"):
        assert part in line


def test_folders_of_images_hide_nothing(tmp_path):
    for name in ("datasets", "results"):
        (tmp_path / name).mkdir()
    done = imported(tmp_path, "from trainers import Predictor\nprint(Predictor.__module__)")
    assert done.stdout == "adaptation.predictor\n", done.stderr
