"""``config.yaml`` of a run folder: the whole config, with which the run can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import train
from adaptation.recording import config_text
from dassl.config import leaves
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs" / "trainers").glob("*/*.yaml"))


def parsed(*words: str):
    args = train.build_parser().parse_args(words)
    return args, train.setup_cfg(args)


@pytest.mark.parametrize("method", sorted({path.parent.name for path in CONFIGS}))
def test_shipped_configs_are_read_back_as_they_are(method, tmp_path):
    for path in (path for path in CONFIGS if path.parent.name == method):
        given = ["--trainer", method, "--config-file", str(path), "DATASET.NAME", "ImageFolder"]
        args, cfg = parsed(*given)
        (tmp_path / "config.yaml").write_text(config_text(cfg, vars(args)), "utf-8")
        _, again = parsed("--config-file", str(tmp_path / "config.yaml"))
        assert again == cfg


def test_awkward_values_are_read_back(tmp_path):
    texts = [
        "{}'s photo.",
        "1e-5",
        "None",
        "[a]",
        "# {}",
        "\u56fe {}: x",
        " {} ",
        "a\nb {}",
        '"{}"',
    ]
    words = ["--trainer", "CoOp", "--root", "2024", "--output-dir", "5", "DATASET.NAME", "Digits"]
    words += ["DATASET.TEMPLATES", repr(texts), "MODEL.INIT_WEIGHTS", "None of it: #1"]
    words += ["TRAINER.COOP.CTX_INIT", "True", "OPTIM.LR", "1e-7", "OPTIM.STEPSIZE", "(1, 2)"]
    args, cfg = parsed(*words)
    args.trainer_file, args.deterministic = ["my files/a.py"], True
    text = config_text(cfg, vars(args))
    assert "--trainer-file 'my files/a.py' --deterministic\n" in text.splitlines(True)[1]
    (tmp_path / "config.yaml").write_text(text, "utf-8")
    _, again = parsed("--config-file", str(tmp_path / "config.yaml"))
    assert again == cfg
    assert (again.DATASET.ROOT, again.OPTIM.LR, again.OPTIM.STEPSIZE) == ("2024", 1e-7, (1, 2))


def learned(folder: Path) -> dict[str, torch.Tensor]:
    file = next(folder.glob("prompt_learner/model.pth.tar-*"))
    return torch.load(file, weights_only=True)["state_dict"]


def test_a_run_from_the_file_repeats_the_run(data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("2024").symlink_to(data_root)
    words = ["--trainer", "CoOp", "--root", "2024", "--seed", "3", "--output-dir", "first"]
    words += ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml"), "--device", "cpu"]
    words += ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1"]
    assert train.main(words) == 0
    assert train.main(["--config-file", "first/config.yaml", "--output-dir", "second"]) == 0
    first, second = (Path(name, "config.yaml").read_text("utf-8") for name in ("first", "second"))
    assert second == first.replace("OUTPUT_DIR: first", "OUTPUT_DIR: second") != first
    for name, value in learned(Path("first")).items():
        assert torch.equal(learned(Path("second"))[name], value)
    records = [json.loads(Path(name, "result.json").read_text()) for name in ("first", "second")]
    assert records[0]["result"] == records[1]["result"]
    said = dict(leaves(records[0]["config"]))
    assert {**said, "OUTPUT_DIR": "second"} == dict(leaves(records[1]["config"]))

    # a test there leaves the training's file; elsewhere it has its own, which says that it tests
    test = ["--config-file", "first/config.yaml", "--eval-only", "--model-dir", "first"]
    assert train.main([*test, "--output-dir", "first", "SEED", "4"]) == 0
    assert Path("first/config.yaml").read_text("utf-8") == first
    assert train.main([*test, "--output-dir", "tested"]) == 0
    assert "--model-dir first --eval-only\n" in Path("tested/config.yaml").read_text("utf-8")
    assert not list(tmp_path.rglob("*.tmp*"))
