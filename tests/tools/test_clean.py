"""``tools.clean``: what killed processes left, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import train
from support.claims import FILE as CLAIM
from support.claims import Claim
from support.command_line import run_command
from tests.conftest import ROOT
from tools.clean import build_parser, clean

HEX = uuid.UUID(int=7).hex
OLD = time.time() - 7200


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """An output folder with a finished run in it."""
    output = tmp_path_factory.mktemp("cleaned") / "output"
    words = ["--trainer", "CoOp", "--root", str(data_root), "--seed", "1", "--device", "cpu"]
    words += ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")]
    words += ["--output-dir", str(output / "a" / "seed1"), "DATASET.NAME", "TestImages"]
    assert train.main([*words, "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]) == 0
    return output


@pytest.fixture
def output(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "output"))


def leave(path: Path, content: str = "x" * 2000, written: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (written, written))
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cleaned(capsys, *words: object) -> str:
    assert run_command(build_parser(), clean, [str(word) for word in words]) == 0
    return capsys.readouterr().out


def dead_claim(run: Path) -> None:
    """Leave the claim of a process that is killed while it holds it."""
    code = (
        "import os, signal, sys\nfrom support.claims import Claim\n"
        "with Claim([sys.argv[1]]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT)
    assert (run / CLAIM).exists()


def test_leftovers_are_shown_then_deleted_and_all_else_stays(output, capsys):
    run = output / "a" / "seed1"
    before = everything(output)
    assert {"a/seed1/result.json", "a/seed1/config.yaml", "a/seed1/log.txt"} <= before.keys()
    assert cleaned(capsys, output) == "0 left-overs, 0 kB\n"

    left = [
        leave(run / f"result.json.tmp{HEX}"),
        leave(run / "prompt_learner" / f"model.pth.tar-1.tmp{HEX}"),
        leave(run / "unfinished.pth"),
        leave(run / "unfinished-before.pth"),
        leave(run / f"{CLAIM}.{HEX}"),
        leave(output / f"bundle.tmp{HEX}" / "image_encoder.onnx"),
    ]
    os.utime(output / f"bundle.tmp{HEX}", (OLD, OLD))
    dead_claim(run)
    # what looks like them and is not
    leave(run / "my.tmp")
    leave(run / "notes.tmp123")
    leave(output / "b" / "seed1" / "unfinished.pth")  # of a run that goes on
    leave(output / "c" / "seed1" / "unfinished.pth")  # as well: a test has a record there
    record = json.loads(before["a/seed1/result.json"]) | {"eval_only": True}
    leave(output / "c" / "seed1" / "result.json", json.dumps(record))
    leave(output / "d" / "seed1" / "unfinished.pth")
    leave(output / "d" / "seed1" / "result.json", "damaged")

    shown = cleaned(capsys, output)
    assert f"{len(left) + 1} left-overs, 12" in shown and "--yes deletes them" in shown
    assert all(path.exists() for path in left) and (run / CLAIM).exists()
    shown = cleaned(capsys, output, "--yes")
    assert f"deleted: {len(left) + 1} left-overs" in shown
    assert not any(path.exists() for path in left) and not (run / CLAIM).exists()
    assert not (output / f"bundle.tmp{HEX}").exists()
    after = everything(output)
    assert before.items() <= after.items()
    assert {"a/seed1/my.tmp", "a/seed1/notes.tmp123", "b/seed1/unfinished.pth"} <= after.keys()
    assert {"c/seed1/unfinished.pth", "d/seed1/unfinished.pth"} <= after.keys()
    assert cleaned(capsys, output, "--yes") == "deleted: 0 left-overs, 0 kB\n"


def test_a_run_that_is_alive_keeps_all(output, capsys):
    run = output / "a" / "seed1"
    left = [leave(run / "unfinished.pth"), leave(run / "prompt_learner" / f"a.tmp{HEX}")]
    with Claim([run]):
        before = everything(run)
        shown = cleaned(capsys, output, "--yes")
        assert shown.count("kept: ") == 2 and f"process {os.getpid()} on " in shown
        assert "deleted: 0 left-overs" in shown
        assert everything(run) == before
    assert "deleted: 2 left-overs" in cleaned(capsys, output, "--yes")
    assert not any(path.exists() for path in left)


def test_what_was_written_lately_stays(output, capsys):
    """A run that was started without the scripts has no claim."""
    path = leave(output / "a" / "seed1" / f"log.txt.tmp{HEX}", written=time.time() - 300)
    fresh = leave(output / f"bundle.tmp{HEX}" / "labels.txt", written=time.time())
    os.utime(fresh.parent, (OLD, OLD))
    shown = cleaned(capsys, output, "--yes")
    assert "kept: 2 written within the last 60 minutes" in shown and path.exists()
    assert "deleted: 1 left-overs" in cleaned(capsys, output, "--yes", "--minutes", "4")
    assert fresh.exists() and not path.exists()


def test_links_are_left(output, tmp_path, capsys):
    elsewhere = leave(tmp_path / "elsewhere" / f"a.tmp{HEX}")
    (output / f"link.tmp{HEX}").symlink_to(elsewhere)
    (output / "folder").symlink_to(elsewhere.parent)
    (output / f"folder.tmp{HEX}").symlink_to(elsewhere.parent)
    cleaned(capsys, output, "--yes", "--minutes", "0")
    assert elsewhere.exists() and (output / f"link.tmp{HEX}").is_symlink()
    assert (output / f"folder.tmp{HEX}").is_symlink()


def test_no_folder_gets_one_line(tmp_path, capsys):
    assert run_command(build_parser(), clean, [str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
