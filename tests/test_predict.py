"""predict.py as a command: what it prints, and what bad input gets."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import predict
from tests.conftest import CLASSNAMES
from trainers import Predictor

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(data_root, tmp_path_factory) -> Path:
    """A folder of images with folders in it, among things that are no images."""
    folder = tmp_path_factory.mktemp("pictures")
    source = data_root / "test-images" / "test"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    shutil.copy(source / "cat" / "0.png", folder / "b.png")
    shutil.copy(source / "tree" / "0.png", folder / "deep" / "er" / "c.PNG")
    Image.open(source / "tree" / "1.png").save(folder / "a.jpg")
    shutil.copy(source / "cat" / "1.png", folder / ".hidden" / "x.png")
    shutil.copy(source / "cat" / "1.png", folder / "._b.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(capsys, *words: object) -> str:
    """What a command that works prints to stdout."""
    assert predict.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def error_of(capsys, *words: object) -> str:
    """The line that a command which cannot work ends with."""
    assert predict.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    *_, last = captured.err.splitlines()
    assert last.startswith("error: ")
    assert captured.err.count("error: ") == 1
    return last


def test_process_prints_labels_only(tiny_run, pictures):
    command = [sys.executable, ROOT / "predict.py", "--model-dir", tiny_run, pictures, "--top-k", 2]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, check=True
    )
    lines = done.stdout.splitlines()
    paths = [str(pictures / name) for name in ("a.jpg", "b.png", "deep/er/c.PNG")]
    assert lines[::3] == paths
    expected = Predictor.load(tiny_run, device="cpu").predict(paths, top_k=2)
    for i, labels in enumerate(expected):
        for line, (name, probability) in zip(lines[3 * i + 1 : 3 * i + 3], labels, strict=True):
            shown, percent, *words = line.split()
            assert (percent, " ".join(words)) == ("%", name.replace("_", " "))
            assert float(shown) == pytest.approx(100 * probability, abs=0.011)


def test_help_imports_no_torch():
    command = [sys.executable, "-X", "importtime", ROOT / "predict.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "--skip-bad" in done.stdout
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "numpy", "dassl", "clip", "trainers"} & modules


def test_json_lines_in_any_batch_size(tiny_run, pictures, capsys):
    words = ["--model-dir", tiny_run, "--json", "--device", "cpu", "--load-epoch", 1, pictures]
    lines = [json.loads(line) for line in run(capsys, *words).splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.jpg", "b.png", "c.PNG"]
    for line in lines:
        assert {p["label"] for p in line["predictions"]} == set(CLASSNAMES)
        assert sum(p["probability"] for p in line["predictions"]) == pytest.approx(1)
    singly = [json.loads(line) for line in run(capsys, *words, "--batch-size", 1).splitlines()]
    for line, single in zip(lines, singly, strict=True):
        assert line["image"] == single["image"]
        for one, other in zip(line["predictions"], single["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_table_of_all_images(tiny_run, pictures, capsys):
    words = ["--model-dir", tiny_run, "--device", "cpu", "--csv", "--top-k", 2, pictures]
    rows = list(csv.DictReader(io.StringIO(run(capsys, *words))))
    paths = [str(pictures / name) for name in ("a.jpg", "b.png", "deep/er/c.PNG")]
    expected = Predictor.load(tiny_run, device="cpu").predict(paths, top_k=2)
    assert [row["image"] for row in rows] == [path for path in paths for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    for row, label in zip(rows, (label for labels in expected for label in labels), strict=True):
        assert row["label"] == label.name
        assert float(row["probability"]) == pytest.approx(label.probability, abs=1e-6)


def test_images_without_a_probable_class_are_rejected(tiny_run, pictures, capsys):
    path = str(pictures / "b.png")
    ((first, *_),) = Predictor.load(tiny_run, device="cpu").predict([path])
    capsys.readouterr()
    words = ["--model-dir", tiny_run, "--device", "cpu", path, "--min-probability"]
    below, above = first.probability - 0.001, first.probability + 0.001
    (found,) = json.loads(run(capsys, *words, below, "--json"))["predictions"]
    assert found["label"] == first.name
    rejected = json.loads(run(capsys, *words, above, "--json"))
    assert rejected["predictions"] == []
    assert rejected["rejected"]["label"] == first.name
    for given, expected in ((above, ("", "yes")), (below, (first.name, "no"))):
        (row,) = csv.DictReader(io.StringIO(run(capsys, *words, given, "--csv", "--top-k", 1)))
        assert (row["image"], row["label"], row["rejected"]) == (path, *expected)
        assert row["best_label"] == first.name
        assert float(row["best_probability"]) == pytest.approx(first.probability, abs=1e-6)
    shown, line = run(capsys, *words, above).splitlines()
    assert shown == path
    assert "rejected" in line and first.name.replace("_", " ") in line
    for bad in ("1.5", "-1", "nan", "x"):
        with pytest.raises(SystemExit):
            predict.main([*map(str, words), bad])
        assert f"{bad!r} is no number from 0 to 1" in capsys.readouterr().err


def test_other_classes_with_and_without_a_run(tiny_run, pictures, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\ndigit three\n  über\n\n", encoding="utf-8")
    words = ["--json", pictures / "b.png"]
    for source in (
        ["--model-dir", tiny_run, "--classes", names],
        ["--model-dir", tiny_run, "--backbone", "tiny", "--classes", "digit three,über"],
        ["--trainer", "ZeroshotCLIP", "--backbone", "tiny", "--classes", "über, digit three,"],
    ):
        out = run(capsys, *source, *words)
        labels = {p["label"] for p in json.loads(out)["predictions"]}
        assert labels == {"digit three", "über"}
        assert "über" in out


def test_bad_images_stop_or_are_skipped(tiny_run, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in" / "aa.png").write_bytes((pictures / "b.png").read_bytes()[:60])
    words = ["--model-dir", tiny_run, "--json", tmp_path / "in"]
    assert re.search(r"aa\.png.*replace it .* --skip-bad", error_of(capsys, *words))
    assert predict.main([str(word) for word in [*words, "--skip-bad", "--batch-size", 1]]) == 0
    captured = capsys.readouterr()
    found = [Path(json.loads(line)["image"]).name for line in captured.out.splitlines()]
    assert found == ["a.jpg", "b.png", "c.PNG"]
    assert "skipped 1 of 4 files" in captured.err
    assert captured.err.count("aa.png") == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "give either --model-dir RUN"),
        (["--model-dir", "RUN", "--trainer", "ZeroshotCLIP"], "give either --model-dir RUN"),
        (
            ["--trainer", "ZeroshotCLIP", "--backbone", "tiny"],
            "needs --backbone NAME and --classes",
        ),
        (["--model-dir", "no/such/run"], "no/such/run"),
        (["--model-dir", "RUN", "nothing.png"], "no such image or folder: nothing.png"),
        (["--model-dir", "RUN", "empty"], "empty has no images (.jpg"),
        (["--model-dir", "RUN", "--classes", "no.txt"], "--classes: no file no.txt"),
        (["--model-dir", "RUN", "--classes", "dog"], "as in banana,apple"),
        (["--model-dir", "RUN", "--classes", "dog,cat,dog"], "names dog more than once"),
        (["--model-dir", "RUN", "--classes", " , "], "holds no class name"),
        (["--model-dir", "RUN", "--classes", "blank"], "blank holds no class name"),
        (["--model-dir", "RUN", "--classes", "twice"], "twice names dog more than once"),
        (["--model-dir", "RUN", "--classes", "bytes"], "bytes is not UTF-8"),
        (["--model-dir", "RUN", "--load-epoch", "7"], "There is: model.pth.tar-1"),
        (["--model-dir", "RUN", "--backbone", "tinny"], "did you mean 'tiny'?"),
        (["--model-dir", "RUN", "--device", "gpu"], "device 'gpu' cannot be used"),
    ],
)
def test_bad_input_gets_one_line(tiny_run, pictures, tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    files = {"blank": b"\n \n", "twice": b"dog\ncat\ndog\n", "bytes": b"\xff\xfe\xfa"}
    for name, content in files.items():
        Path(name).write_bytes(content)
    words = [str(tiny_run) if word == "RUN" else word for word in words]
    assert part in error_of(capsys, *words, pictures / "b.png")


def test_what_a_console_cannot_show_is_valid_json(tiny_run, pictures, tmp_path, monkeypatch):
    picture = shutil.copy(pictures / "b.png", tmp_path / "图片😀.png")
    words = ["--model-dir", tiny_run, "--classes", "猫,é", picture]
    for options in ([], ["--json"]):
        console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", console)
            assert predict.main([str(word) for word in [*words, *options]]) == 0
        text = console.buffer.getvalue().decode("cp1252")
        if options:
            content = json.loads(text)
            assert content["image"] == str(picture)
            assert {p["label"] for p in content["predictions"]} == {"猫", "é"}
        else:
            assert "\\U0001f600.png" in text and "\\u732b" in text and "é" in text


@pytest.mark.parametrize("option", ["--top-k", "--batch-size", "--load-epoch"])
def test_counts_are_positive(option, capsys):
    with pytest.raises(SystemExit):
        predict.main([option, "0", "x.png"])
    assert "'0' is no whole number from 1 on" in capsys.readouterr().err


def test_traceback_on_request(tiny_run):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        predict.main(["--traceback", "--model-dir", str(tiny_run), "nothing.png"])
