"""What every command on a run does alike."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets import imagefolder
from datasets.imagefolder import EXTENSIONS, undecoded_photos
from tools.command import find_images, stem, writing

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if path.stem not in ("__init__", "command")
)
#: those that are not about one run
WITHOUT_RUN = {"clean", "config_reference", "what_works"}
#: those that do not read what a run learned
WITHOUT_WEIGHTS = {"inspect_run", *WITHOUT_RUN}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_torch(command):
    words = [sys.executable, "-X", "importtime", "-m", f"tools.{command}", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "RUN" in done.stdout or command in WITHOUT_RUN
    assert ("--load-epoch" in done.stdout) == (command not in WITHOUT_WEIGHTS)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "numpy", "dassl", "clip", "trainers", "matplotlib"} & modules


def test_missing_run_gets_one_line():
    words = [sys.executable, "-m", "tools.export", "no/such/run", "out.safetensors"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the run folder no/such/run does not exist")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_folders_give_the_images_that_training_takes(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.touch()
    assert find_images([str(tmp_path)]) == [str(path)]


def test_photos_that_cannot_be_decoded_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(imagefolder, "EXTENSIONS", (".jpg",))
    monkeypatch.setattr(imagefolder, "UNDECODED", (".heic", ".avif"))
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "b.HEIC", "deep/c.heic", ".d.heic"):
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / "a.jpg")]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"2 .heic files are not read (first: {tmp_path / 'b.HEIC'})" in captured.err
    (tmp_path / "a.jpg").unlink()
    assert undecoded_photos(["a/x.heic"]).startswith("1 .heic file is not read (first: a/x.heic)")
    with pytest.raises(FileNotFoundError, match=r"has no images \(2 .heic files are not read"):
        find_images([str(tmp_path)])


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = str(tmp_path / "x.csv")
    for error, reason in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError("9 requested and 0 written"), "9 requested and 0 written"),  # NumPy's
    ):
        with pytest.raises(OSError) as caught, writing(path) as temporary:
            if error.errno == errno.EACCES:
                error.filename = str(temporary)
            raise error
        assert str(caught.value) == f"cannot write {path}: {reason}"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *((f"new/x{end}", "new/x") for end in ("", ".png", ".csv")),
        *((folder, f"{folder}both") for folder in ("new/", "../", "/", "")),
        *((folder, f"{folder}/both") for folder in (".", "..", "new/.")),
        ("new/.csv", "new/both"),
        ("new/.x", "new/.x"),
    ],
)
def test_a_folder_is_no_hidden_file(given, name):
    assert stem("both")(given) == name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("export", ["RUN", "{}"]),
        ("export", ["RUN", "--classifier", "{}"]),
        ("nearest_words", ["RUN", "--out", "{}"]),
    ],
)
@pytest.mark.parametrize("folder", ["there", "absent.npy/"])
def test_a_folder_in_place_of_a_file_is_refused_first(tmp_path, capsys, command, words, folder):
    (tmp_path / "there").mkdir()
    words = [word.format(f"{tmp_path}/{folder}") for word in words]
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"tools.{command}").build_parser().parse_args(words)
    assert caught.value.code == 2
    assert f"{folder}' is a folder: name a file in it" in capsys.readouterr().err
