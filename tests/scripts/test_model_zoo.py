"""The model zoo: entries that the commands read, with what was measured, and checksums."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import predict
import train
from scripts import model_zoo
from tests.conftest import ROOT
from trainers import Predictor

WORDS = ("DATASET.SUBSAMPLE_CLASSES", "new", "OPTIM.MAX_EPOCH", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folder with a zoo of two methods, its runs and its data."""
    place = tmp_path_factory.mktemp("zoo")
    where = ["--runs", str(place / "runs"), "--root", str(place / "data"), "--shots", "2"]
    names = ["--methods", "CoOp,maple", "--whole"]
    assert model_zoo.main([str(place / "zoo"), *where, *names, *WORDS]) == 0
    return place


def test_entries_hold_what_was_measured(made):
    index = json.loads((made / "zoo" / "index.json").read_text("utf-8"))
    assert [entry["name"] for entry in index] == ["coop", "maple"]
    for entry in index:
        folder = made / "zoo" / entry["name"]
        record = json.loads((folder / "result.json").read_text("utf-8"))
        assert entry["accuracy"] == record["result"]["metrics"]["accuracy"]
        assert (entry["shots"], entry["seed"], entry["epoch"]) == (2, 1, 1)
        card = (folder / "README.md").read_text("utf-8")
        for part in (f"{entry['accuracy']:.2f} %", entry["paper"], "digit seven", "2 images"):
            assert part and part in card
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_an_entry_is_a_run_folder(made, capsys, tmp_path):
    picture = next((made / "data" / "digits" / "images" / "test").rglob("*.png"))
    for name in ("coop", "maple"):
        (run,) = made.glob(f"runs/*/{name}/seed1")
        zoo = made / "zoo" / name
        capsys.readouterr()
        assert predict.main(["--model-dir", str(zoo), "--json", str(picture)]) == 0
        shown = json.loads(capsys.readouterr().out)["predictions"]
        ((best, *_),) = Predictor.load(run, device="cpu").predict([picture])
        assert shown[0]["probability"] == pytest.approx(best.probability)

    # its own file, and that in the layout of published code, are tested to the same
    words = ["--eval-only", "--config-file", str(zoo / "config.yaml")]
    for model_dir in (zoo, zoo / "upstream"):
        out = tmp_path / model_dir.name
        assert train.main([*words, "--model-dir", str(model_dir), "--output-dir", str(out)]) == 0
        tested = json.loads((out / "result.json").read_text())["result"]
        entry = json.loads((zoo / "entry.json").read_text())
        assert tested["metrics"]["accuracy"] == pytest.approx(entry["accuracy"])


def test_the_same_again_makes_the_same(made):
    before = (made / "zoo" / "coop" / "entry.json").read_bytes()
    (run,) = made.glob("runs/*/coop/seed1")
    model_zoo.write_entry("coop", run, made / "zoo")
    assert (made / "zoo" / "coop" / "entry.json").read_bytes() == before
    assert not list((made / "zoo").glob("*.tmp*"))


@pytest.mark.parametrize("what", ["changed", "missing", "added"])
def test_check_names_the_file(made, tmp_path, capsys, what):
    zoo = Path(shutil.copytree(made / "zoo", tmp_path / "zoo"))
    assert model_zoo.main([str(zoo), "--check"]) == 0
    path = zoo / "coop" / "prompt_learner" / ("extra" if what == "added" else "model.pth.tar-1")
    if what == "missing":
        path.unlink()
    else:
        torch.save({}, path)
    assert model_zoo.main([str(zoo), "--check"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--methods", "zsclip"], "zsclip learns nothing"),
        (["--methods", "coop,mmlip"], "did you mean mmlop?"),
        (["--data", "digit"], "did you mean digits?"),
        (["--check"], "is no zoo"),
    ],
)
def test_what_cannot_work_gets_one_line(tmp_path, capsys, words, part):
    assert model_zoo.main([str(tmp_path / "zoo"), *words]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1
    assert not (tmp_path / "zoo").exists()


def test_no_entry_is_large_without_whole_models(made, tmp_path):
    (run,) = made.glob("runs/*/maple/seed1")
    model_zoo.write_entry("maple", run, tmp_path)
    assert not (tmp_path / "maple" / "upstream").exists()
    assert "tools.to_upstream" in (tmp_path / "maple" / "README.md").read_text("utf-8")
    clip = (ROOT / "clip" / "weights" / "tiny.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < clip
