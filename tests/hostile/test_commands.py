"""Commands on hostile files: one line of error, exit status 2, nothing run, nothing left behind."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

import parse_test_res
import predict
import train
from datasets import prepare
from tests.hostile.mutations import YAML_VALUES, Payload
from tests.hostile.weights import own_images
from tests.results.writing import write_record


def checkpoint(folder: Path, canary: Path) -> list[str]:
    """A checkpoint that is a payload, for predict.py."""
    file = folder / "run/prompt_learner/model.pth.tar-1"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "epoch": 1, "meta": Payload(canary)}, file)
    return ["--model-dir", str(folder / "run"), "--device", "cpu", str(own_images(folder))]


def plain_pickle(folder: Path, canary: Path) -> list[str]:
    file = folder / "run/prompt_learner/model.pth.tar-1"
    words = checkpoint(folder, canary)
    file.write_bytes(pickle.dumps(Payload(canary, 1)))
    return words


def class_names(folder: Path, canary: Path) -> list[str]:
    (folder / "names.txt").write_text("cat\nd\x1b]0;owned\x07og\n")
    words = ["--trainer", "ZeroshotCLIP", "--backbone", "tiny", "--device", "cpu"]
    return [*words, "--classes", str(folder / "names.txt"), str(own_images(folder))]


def config(folder: Path, text: str) -> list[str]:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    words = ["--trainer", "CoOp", "--config-file", str(file), "--root", str(folder)]
    return [*words, "--output-dir", str(folder / "output"), "DATASET.NAME", "Digits"]


def yaml_payload(folder: Path, canary: Path) -> list[str]:
    return config(folder, "DATASET: " + YAML_VALUES[0].format(canary=canary))


def yaml_bomb(folder: Path, canary: Path) -> list[str]:
    bomb = next(value for value in YAML_VALUES if "*o" in value)
    return config(folder, f"DATASET: {{TEMPLATES: {bomb}}}")


def image_list(folder: Path, canary: Path) -> list[str]:
    own_images(folder)
    (folder / "own/list.csv").write_bytes(b"path,label\ncat/0.png,cat\ncat/1.png,a\xff\xfe\0\n")
    words = config(folder, "INPUT: {SIZE: [32, 32]}")[:-1]
    words += ["ImageFolder", "DATASET.IMAGEFOLDER.FOLDER", "own"]
    return [*words, "DATASET.IMAGEFOLDER.LIST", "list.csv", "MODEL.BACKBONE.NAME", "tiny"]


def record(folder: Path, canary: Path) -> list[str]:
    run = folder / "output/dtd/CoOp/vit_b16_16shots/seed1"
    write_record(run, 70_000)
    file = run / "result.json"
    file.write_text(file.read_text().replace("70.0", "1e999"))
    return ["--output", str(folder / "output")]


def deep_record(folder: Path, canary: Path) -> list[str]:
    words = record(folder, canary)
    (file,) = folder.rglob("result.json")
    file.write_text("[" * 100_000)
    return words


@pytest.mark.parametrize(
    ("command", "write", "said"),
    [
        (predict, checkpoint, "it holds pickled objects"),
        (predict, plain_pickle, "it holds pickled objects"),
        (predict, class_names, "holds '\\x1b', which is no text"),
        (train, yaml_payload, "config.yaml is not valid YAML"),
        (train, yaml_bomb, "with references written out"),
        (train, image_list, "list.csv is not a text file"),
        (parse_test_res, record, "Nothing found"),
        (parse_test_res, deep_record, "Nothing found"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_line_of_error(command, write, said, tmp_path, capsys, monkeypatch):
    canary = tmp_path / "executed"
    words = write(tmp_path, canary)
    stdout = sys.stdout
    try:
        status = command.main(words)
    finally:
        monkeypatch.setattr(sys, "stdout", stdout)  # which train.py's logger takes
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2, err
    assert len(errors) == 1 and said in errors[0], err
    assert "Traceback" not in err and errors[0].isprintable()
    assert not canary.exists()
    assert not list(tmp_path.rglob("model.pth.tar-2"))


def test_a_hostile_record_does_not_keep_others_from_counting(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_record(tmp_path / f"dtd/CoOp/vit_b16_16shots/seed{seed}", 70_000 + seed, seed=seed)
    (tmp_path / "dtd/CoOp/vit_b16_16shots/seed3/result.json").write_text('{"schema": ' + "9" * 9999)
    assert parse_test_res.main(["--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "70.00" in out
    assert "seed3/result.json: damaged" in err


def test_an_archive_that_leads_outside(tmp_path, capsys):
    """The data set is not ready (status 1), one line says why, and nothing lies outside."""
    root = tmp_path / "root"
    archive = root / "downloads/toy/toy.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as file:
        for name, target in (("images/link", "../../.."), ("images/link/outside.txt", None)):
            member = tarfile.TarInfo(name)
            if target:
                member.type, member.linkname = tarfile.SYMTYPE, target
            else:
                member.size = 7
            file.addfile(member, None if target else io.BytesIO(b"outside"))
    entry = {"file": "toy/toy.tar.gz", "place": ["images"], "urls": []}
    table = {"dtd": {"classes": 1, "images": [1, 1, 1], "files": [entry]}}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    words = ["dtd", "--root", str(root), "--sources", str(tmp_path / "sources.yaml")]
    assert prepare.main(words) == 1
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("  error: ")]
    assert len(errors) == 1 and "'images/link' is a link" in errors[0], err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "sources.yaml"]
    assert not list(tmp_path.rglob("outside.txt"))
    assert sorted(path.name for path in (root / "dtd").iterdir()) == []
