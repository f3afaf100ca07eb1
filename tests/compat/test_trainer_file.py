"""Trainer files of one's own on our command line: ``train.py --trainer-file``."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

import datasets  # noqa: F401  registers, before the registries are copied
import predict
import train
import trainers  # noqa: F401
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from results import record
from tests.compat import upstream_dataset, upstream_trainer

ROOT = Path(__file__).parents[2]

#: what published repositories have in their train.py, which cannot be imported here
TRAIN_PY = """
import argparse
import trainers.theirs
from theirs.data import everything

DEPTH = 3

def extend_cfg(cfg):
    from yacs.config import CfgNode as CN

    cfg.TRAINER.UPSTREAMCOOP = CN()
    cfg.TRAINER.UPSTREAMCOOP.N_CTX = 16
    cfg.TRAINER.UPSTREAMCOOP.CTX_INIT = ""
    cfg.TRAINER.UPSTREAMCOOP.PREC = "fp16"
    cfg.TRAINER.UPSTREAMCOOP.DEPTH = DEPTH
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"

if __name__ == "__main__":
    everything()
"""
KEYS = 'TRAINER: {UPSTREAMCOOP: {N_CTX: 16, CTX_INIT: "", PREC: fp16, DEPTH: 3}}\n'


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """What a command changes in its process: registries, search path, console."""
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdout", sys.stdout)


@pytest.fixture
def their(tmp_path):
    """Folder of the trainer file, of the data set file that it imports, and of their train.py."""
    folder = tmp_path / "their"
    folder.mkdir()
    trainer = Path(upstream_trainer.__file__).read_text()
    (folder / "upstream_coop.py").write_text(f"from . import upstream_colours\n{trainer}")
    data = Path(upstream_dataset.__file__).read_text()
    (folder / "upstream_colours.py").write_text(data)
    (folder / "train.py").write_text(TRAIN_PY)
    (folder / "keys.yaml").write_text(KEYS)
    return folder


@pytest.fixture
def words(tmp_path, their, data_root):
    """Options of a short run of theirs on embedded CLIP and the images of these tests."""
    return [
        *(
            "--trainer-file",
            str(their / "upstream_coop.py"),
            "--extend-cfg",
            str(their / "train.py"),
        ),
        *("--trainer", "UpstreamCoOp", "--root", str(data_root), "--seed", "1"),
        *("--config-file", str(ROOT / "configs/base.yaml"), "--backbone", "tiny"),
        *("--output-dir", str(tmp_path / "run"), "DATASET.NAME", "TestImages"),
        *("DATASET.NUM_SHOTS", "4", "TRAINER.UPSTREAMCOOP.PREC", "fp32", "INPUT.SIZE", "(32, 32)"),
        *("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1", "USE_CUDA", "False"),
        *("DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "10"),
    ]


def setup(*words: str):
    return train.setup_cfg(train.build_parser().parse_args(words))


def error_of(capsys, *words: str) -> str:
    assert train.main([*words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_a_run_of_theirs_goes_on_is_tested_and_is_refused_elsewhere(words, tmp_path, their, capsys):
    assert train.main(words) == 0
    out = capsys.readouterr().out
    assert "upstream_coop.py registers dataset UpstreamColours, trainer UpstreamCoOp" in out
    assert "epoch [2/2] batch [2/2]" in out and "* total: 30" in out
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "UPSTREAMCOOP:" in log and str(their / "upstream_coop.py") in log
    folder = tmp_path / "run" / "prompt_learner"
    last = torch.load(folder / "model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
    found = record.read(tmp_path / "run")
    assert (found["method"], found["parameters"]) == ("UpstreamCoOp", last.numel())
    assert (found["result"]["total"], len(found["result"]["per_class"])) == (30, 5)
    assert len(found["seconds"]["epochs"]) == found["model"]["epoch"] == 2
    assert "UPSTREAMCOOP" in found["config"]["TRAINER"]

    # stopped after an epoch, started again
    (folder / "model.pth.tar-2").unlink()
    (folder / "checkpoint").write_text("model.pth.tar-1\n")
    assert train.main(words) == 0
    assert "will resume training" in capsys.readouterr().out
    again = torch.load(folder / "model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
    assert torch.equal(again, last)

    run = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2"]
    words[words.index("--output-dir") + 1] = str(tmp_path / "test")
    assert train.main([*run, *words]) == 0
    out = capsys.readouterr().out
    assert "(epoch = 2)" in out and "* total: 30" in out
    model = record.read(tmp_path / "test")["model"]
    assert (model["load_epoch"], model["trained"]["method"]) == (2, "UpstreamCoOp")

    # seeds together, and pictures: not with a trainer of one's own
    at = words.index("--seed")
    seeds = [*words[:at], "--seeds", "1,2", *words[at + 2 :]]
    seeds[seeds.index("--output-dir") + 1] = str(tmp_path / "s{seed}")
    assert "UpstreamCoOp has its own forward_backward" in error_of(capsys, *seeds)
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    picture = str(tmp_path / "picture.png")
    assert predict.main(["--model-dir", str(tmp_path / "run"), picture]) == 2
    assert "--eval-only --model-dir (and --trainer-file)" in capsys.readouterr().err


def test_a_copied_file_takes_the_place_of_ours(words, their, capsys):
    """With the keys that ours declares, and also when it is asked for again."""
    text = (their / "upstream_coop.py").read_text()
    file = their / "coop.py"
    file.write_text(text.replace("UPSTREAMCOOP", "COOP").replace("UpstreamCoOp", "CoOp"))
    options = [
        *("--trainer-file", str(file), "--trainer", "CoOp", "DATASET.NAME", "TestImages"),
        *("TRAINER.COOP.N_CTX", "3"),
    ]
    for _ in range(2):
        assert setup(*options).TRAINER.COOP.N_CTX == 3
    out = capsys.readouterr().out
    assert out.count("Note: trainer CoOp of trainers.coop is replaced\n") == 1
    assert out.count("coop.py declares no config keys; --extend-cfg FILE does so\n") == 2
    assert TRAINER_REGISTRY.get("CoOp").load_model.__code__.co_filename == str(file)


@pytest.mark.parametrize("method", ["CoOp", "MMLoP"])
def test_a_subclass_of_a_method(tmp_path, method):
    """Its config node, and old names of keys, are the method's."""
    file = tmp_path / "own.py"
    file.write_text(
        "from dassl.engine import TRAINER_REGISTRY\n"
        f"from trainers.{method.lower()} import {method}\n"
        f"@TRAINER_REGISTRY.register()\nclass Own({method}):\n    pass\n"
    )
    words = ["--trainer-file", str(file), "--trainer", "Own"]
    words += ["--dataset-config-file", "configs/datasets/digits.yaml"]
    words += ["--config-file", f"configs/trainers/{method}/tiny.yaml"]
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    assert cfg.TRAINER[method.upper()].N_CTX == 4


def test_the_file_of_the_docs(words, tmp_path, capsys):
    page = (ROOT / "docs/own_trainer.md").read_text()
    file = tmp_path / "probe.py"
    file.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    words[: words.index("--trainer")] = ["--trainer-file", str(file)]
    words[words.index("UpstreamCoOp")] = "Probe"
    at = words.index("TRAINER.UPSTREAMCOOP.PREC")
    words[at : at + 2] = ["TRAINER.PROBE.SCALE", "5"]
    assert train.main(words) == 0
    out = capsys.readouterr().out
    assert "registers trainer Probe" in out and "epoch [2/2] batch [2/2]" in out
    # its keys in the form of the YAML file
    keys = tmp_path / "keys.yaml"
    keys.write_text(textwrap.dedent(re.search(r" *```yaml\n(.*?)```", page, re.DOTALL)[1]))
    assert (
        setup(
            "--extend-cfg", str(keys), "--trainer", "CoOp", "DATASET.NAME", "TestImages"
        ).TRAINER.PROBE.SCALE
        == 10
    )


@pytest.mark.parametrize("file", ["train.py", "keys.yaml"])
def test_keys_come_from_their_train_py_or_from_yaml(words, their, file):
    words[words.index("--extend-cfg") + 1] = str(their / file)
    node = setup(*words).TRAINER.UPSTREAMCOOP
    assert (node.N_CTX, node.PREC, node.DEPTH) == (16, "fp32", 3)


def test_keys_come_from_the_file_itself(words, their):
    file = their / "upstream_coop.py"
    file.write_text(f"{file.read_text()}\n\n{TRAIN_PY[TRAIN_PY.index('DEPTH') :]}")
    at = words.index("--extend-cfg")
    del words[at : at + 2]
    assert setup(*words).TRAINER.UPSTREAMCOOP.DEPTH == 3


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("none.py", None, ["no file"]),
        ("x.txt", "", ["x.txt is not a Python file"]),
        ("x.py", "def f(:", ["x.py cannot be imported: SyntaxError", "line 1"]),
        ("x.py", "import trainers.theirs", ["x.py", "No module named 'trainers.theirs'"]),
        ("x.py", "from .theirs import X", ["x.py", "theirs", "from .name import X"]),
        ("x.py", "import torch", ["x.py registers nothing", "@TRAINER_REGISTRY.register()"]),
        (
            "x.py",
            "from dassl.engine import TrainerX\nclass Mine(TrainerX): ...",
            ["put @TRAINER_REGISTRY.register() (dassl.engine) in front of Mine"],
        ),
        (
            "x.py",
            "from datasets.dtd import *\nclass Birds(DescribableTextures): ...",
            ["put @DATASET_REGISTRY.register() (dassl.data.datasets) in front of Birds"],
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, capsys, name, text, parts):
    if text is not None:
        (tmp_path / name).write_text(text)
    line = error_of(capsys, "--trainer-file", str(tmp_path / name), "--trainer", "CoOp")
    assert "--trainer-file: " in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("kind", "base", "words"),
    [
        ("TRAINER", "dassl.engine import TrainerX", ["--trainer", "unseen"]),
        ("DATASET", "datasets.dtd import DescribableTextures", ["DATASET.NAME", "Unseen"]),
    ],
)
def test_a_class_that_was_not_registered_is_named(kind, base, words, tmp_path, capsys, monkeypatch):
    """Also where its file registers others, or lies in the folder of those that come with us."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", {**TRAINER_REGISTRY._obj_map})
    file = tmp_path / "x.py"
    file.write_text(
        f"from dassl.engine import TRAINER_REGISTRY, TrainerX\nfrom {base}\n"
        "@TRAINER_REGISTRY.register()\nclass Seen(TrainerX): ...\n"
        f"class Unseen({base.split()[-1]}): ...\n"
    )
    line = error_of(capsys, "--trainer-file", str(file), "--trainer", "CoOp", *words)
    assert f"{file} has a class Unseen that is not registered: put @{kind}_REGISTRY." in line


def test_a_name_twice_in_their_file_is_an_error(tmp_path, capsys):
    one = "@R.register()\nclass Mine: ...\n"
    (tmp_path / "x.py").write_text(f"from dassl.engine import TRAINER_REGISTRY as R\n{one}{one}")
    assert "Mine is already registered" in error_of(
        capsys, "--trainer-file", str(tmp_path / "x.py"), "--trainer", "Mine"
    )


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("none.yaml", None, ["no file"]),
        ("x.json", "{}", ["x.json is neither a YAML file"]),
        ("x.yaml", "TRAINER: [", ["x.yaml is not valid YAML"]),
        ("x.yaml", "OPTIM: {LR: fast}", ["OPTIM.LR", "x.yaml", "float"]),
        ("x.yaml", "OPTIM: {LR: {MORE: 1}}", ["OPTIM.LR", "x.yaml", "no group of keys"]),
        ("x.yaml", "OPTIM: 1", ["OPTIM", "x.yaml", "is a group of keys"]),
        ("x.py", "def extend(cfg): ...", ["x.py has no function extend_cfg(cfg)"]),
        ("x.py", "def f(:", ["x.py is no Python"]),
        ("x.py", "import os\ndef extend_cfg(cfg):\n    os.getcwd()", ["x.py", "'os'", "own"]),
    ],
)
def test_keys_that_cannot_be_declared(tmp_path, capsys, name, text, parts):
    if text is not None:
        (tmp_path / name).write_text(text)
    line = error_of(capsys, "--extend-cfg", str(tmp_path / name), "--trainer", "CoOp")
    assert "--extend-cfg: " in line
    for part in parts:
        assert part in line
