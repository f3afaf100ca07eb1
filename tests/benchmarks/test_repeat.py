"""The same sweep twice, and with loader workers: what the runs leave is equal, file by file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import train
from benchmarks.repeat import compare
from tests.conftest import ROOT

#: one whose result is the last learner, and one with a teacher and an average over the epochs
METHODS = ("CoOp", "PromptSRC")


@pytest.fixture()
def sweep(tmp_path, data_root, monkeypatch):
    """Function that runs some methods as ``train.py`` does, each into its own folder."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)

    def sweep(folder: str, *pairs: str) -> Path:
        for method in METHODS:
            words = ["--trainer", method, "--root", str(data_root), "--seed", "1", "--quiet"]
            words += ["--config-file", str(ROOT / f"configs/trainers/{method}/tiny.yaml")]
            words += ["--output-dir", str(tmp_path / folder / method), "--deterministic"]
            words += ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False"]
            words += ["OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "5"]
            words += ["INPUT.TRANSFORMS", "('random_resized_crop', 'random_flip', 'cutout')"]
            words += ["TRAIN.CHECKPOINT_FREQ", "1", *pairs]
            assert train.main(words) == 0
        return tmp_path / folder

    yield sweep
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def test_equal_sweeps_leave_equal_files(sweep):
    seeded = ("INPUT.SEEDED_VIEWS", "True")
    first = sweep("first", *seeded)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark and torch.backends.cudnn.deterministic
    others = [sweep("again", *seeded)]
    for workers in ("1", "2"):
        others.append(sweep(workers, *seeded, "DATALOADER.NUM_WORKERS", workers))
    for other in others:
        for method in METHODS:
            found = compare(first / method, other / method)
            assert (found.different, found.error, found.accuracy) == ([], 0.0, 0.0)
            # two checkpoints, the record, the predictions
            assert found.files == 4 and found.values > 40


def test_a_difference_is_found(sweep):
    """In the last bit of a tensor, in a record, in a missing file."""
    first, other = sweep("first") / "CoOp", sweep("other") / "CoOp"
    assert compare(first, other).different == [], "one process repeats itself without seeded views"
    path = other / "prompt_learner/model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    ctx = checkpoint["state_dict"]["ctx"]
    ctx[0, 0] = torch.nextafter(ctx[0, 0], torch.tensor(1.0))
    torch.save(checkpoint, path)
    record = json.loads((other / "result.json").read_text())
    record["result"]["correct"] += 1
    record["config"]["OPTIM"]["LR"] *= 2
    record["ended"] = "another day"
    (other / "result.json").write_text(json.dumps(record))
    found = compare(first, other)
    assert found.different == [
        "prompt_learner/model.pth.tar-2/state_dict/ctx",
        "result.json/config/OPTIM.LR",
        "result.json/result/correct",
    ]
    assert 0 < found.error < 1e-5
    (other / "prompt_learner/model.pth.tar-1").unlink()
    assert any("tar-1/epoch" in name for name in compare(first, other).different)
