"""Protocols: folders that are read as they are written, and one more protocol in one entry."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

import protocols
from protocols import EMBEDDED, EVALUATION, PROTOCOLS, PUBLISHED, TEST_NEW, TRAINING, ZEROSHOT
from tests.recipes import read_recipes

ROOT = Path(__file__).parents[2]
RUN = {"dataset": "dtd", "trainer": "ZeroshotCLIP", "config": "vit_b16-a_2shots", "seed": "7"}


def test_folders_are_read_as_they_are_written():
    for folder in protocols.folders():
        for shots in ("16", "all"):
            for subfolder in ("", "nctx16_cscFalse_ctpend", "a/b"):
                for source in ("imagenet", "digits"):
                    run = RUN | {"shots": shots, "subfolder": subfolder, "source": source}
                    kind, fields = protocols.read_folder(folder.path(**run))
                    assert kind is folder
                    assert fields == {name: run[name] for name in folder.fields}


@pytest.mark.parametrize(
    ("path", "kind", "fields"),
    [
        ("base2new/test_new/dtd/shots_4/CoOp/c/seed1", TEST_NEW, {"shots": "4"}),
        ("dtd/CoOp/c_4shots/seed1", TRAINING, {"subfolder": ""}),
        ("dtd/CoOp/c_4shots/nctx4/more/seed1", TRAINING, {"subfolder": "nctx4/more"}),
        ("few_shot/dtd/PromptSRC/c_4shots/seed1", PUBLISHED, {"dataset": "dtd"}),
        ("evaluation/CoOp/c_4shots/dtd/seed1", EVALUATION, {"source": "imagenet"}),
        ("evaluation/CoOp/c_4shots/n/dtd/seed1", EVALUATION, {"subfolder": "n"}),
        (
            "evaluation/CoOp/c_4shots/n/from_digits/dtd/seed1",
            EVALUATION,
            {"subfolder": "n", "source": "digits", "dataset": "dtd"},
        ),
        ("ZeroshotCLIP/rn50/dtd", ZEROSHOT, {"config": "rn50"}),
        ("ZeroshotCLIP2/rn50/dtd", ZEROSHOT, {"trainer": "ZeroshotCLIP2"}),
    ],
)
def test_upstreams_folders_are_read(path, kind, fields):
    found, read = protocols.read_folder(path)
    assert found is kind
    assert {name: read[name] for name in fields} == fields


@pytest.mark.parametrize(
    "path", ["CoOp/rn50/dtd", "dtd/CoOp/c/seed1", "base2new/train/dtd/shots_4/CoOp/c/seed1", "a"]
)
def test_other_folders_are_of_no_protocol(path):
    assert protocols.read_folder(path) is None


def test_data_sets_have_files():
    there = {path.stem for path in ROOT.glob("configs/datasets/*.yaml")}
    assert {*EMBEDDED, *(d for protocol in PROTOCOLS for d in protocol.datasets)} <= there


def test_one_entry_makes_a_protocol(clone):
    """That of CONTRIBUTING.md: its commands, with the configs of base-to-new; a sweep; a table."""
    read_recipes()["protocol"].write(clone.folder)
    for name in ("train", "test"):
        scripts = clone.folder / "scripts" / "mmlop"
        shutil.copy(scripts / f"base2new_{name}.sh", scripts / f"new2base_{name}.sh")

    done = clone.call("scripts/mmlop/new2base_test.sh", "dtd", "1", DRY_RUN="1")
    command = shlex.split(done.stdout)
    folder = "dtd/MMLoP/vit_b16_base2new_16shots/seed1"
    assert command[command.index("--output-dir") + 1] == f"output/turned/test/{folder}"
    assert command[command.index("--model-dir") + 1] == f"output/turned/train/{folder}"
    assert command[command.index("--load-epoch") + 1] == "30"
    assert command[-2:] == ["DATASET.SUBSAMPLE_CLASSES", "base"]
    assert "new2base_train.sh DATASET SEED" in clone.call("scripts/run.sh", "--help").stdout

    done = clone.call("scripts/all.sh", "mmlop", "digits", "1 2", PROTOCOL="new2base")
    assert (done.returncode, done.stdout) == (0, "4 done\n"), done.stderr
    again = clone.call("scripts/all.sh", "mmlop", "digits", "1 2", PROTOCOL="new2base")
    assert again.stdout == "4 finished before\n"

    (row,) = json.loads(clone.tables("--format", "json"))
    assert (row["protocol"], row["dataset"], row["trainer"]) == ("new2base", "digits", "MMLoP")
    assert (row["seeds"], row["base"], row["new"]) == (2, 61.5, 61.5)
    assert "### New-to-base, digits (accuracy, %)" in clone.tables()
