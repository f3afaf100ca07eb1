"""One run shared by the processes that ``torchrun`` starts, on the CPU, against one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import ranks, set_random_seed
from tests.parity_files import relative_error
from tests.trainers.test_contract import METHODS

ROOT = Path(__file__).parents[2]
RUNS = "tests.adaptation.runs_on_ranks"
#: largest relative difference of a learner, where nothing below says more
LIMIT = 5e-4
#: float16 rounds each process's part of the batch by itself. The gradient of an L1 loss is the sign
#: of a difference, and rounding turns signs of differences near zero: noise of 1e-7 in the frozen
#: weights moves MMLoP's factors by up to 8e-5, without its L1 terms by 7e-6.
LIMITS = {"scaled and clipped": 5e-2} | dict.fromkeys(
    ("MMLoP", "texts not shared out", "PromptSRC", "chosen and clipped"), 5e-3
)


def torchrun(n_ranks: int, *words: str) -> list[str]:
    """The command that has several processes share a run."""
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_ranks)]
    return [sys.executable, *program, *words]


def start(command: list[str]) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:] + err[-6000:]
    return out


def test_two_processes_train_and_test_as_one(tmp_path, data_root):
    """Every registered method, and what settings change in a step: see ``CASES`` of the runs."""
    folders = [tmp_path / "one", tmp_path / "two"]
    words = [[RUNS, str(folder), str(data_root)] for folder in folders]
    started = [start([sys.executable, "-m", *words[0]]), start(torchrun(2, "-m", *words[1]))]
    printed = [finished(process) for process in started]
    cases = re.findall(r"(?m)^\*\*\* (.+)$", printed[0])
    assert set(METHODS) < set(cases)
    # what one process prints, once
    (text, refused), (its_text, its_refused) = (each.split("--- refused\n") for each in printed)
    assert lines_without_numbers(its_text) == lines_without_numbers(text)
    assert re.findall(r"(?m)^random steps: .* the same random numbers", its_refused)
    assert "random steps: " not in refused
    for case in cases:
        one, two = (torch.load(folder / f"{case}.pt", weights_only=True) for folder in folders)
        limit = LIMITS.get(case, LIMIT)
        for name, weights in one["weights"].items():
            for key, value in weights.items():
                assert relative_error(two["weights"][name][key], value) < limit, (case, key)
        for entry, its_entry in zip(one["scalars"], two["scalars"], strict=True):
            assert its_entry == (entry[0], pytest.approx(entry[1], rel=limit, abs=limit), entry[2])
        # no image twice, none left out, in their order
        assert torch.equal(two["labels"], one["labels"]), case
        assert relative_error(two["outputs"], one["outputs"]) < limit, case
        best, second = one["outputs"].topk(2).values.unbind(dim=1)
        tied = best - second < 2 * limit * one["outputs"].abs().max()
        same = two["outputs"].argmax(dim=1) == one["outputs"].argmax(dim=1)
        assert (same | tied).all() and not tied.all(), case
        assert two["results"] == one["results"] or not same.all(), case


def lines_without_numbers(text: str) -> list[str]:
    """Headings and results, whose numbers are compared unrounded."""
    return [re.sub(r"[\d.,]+", "N", line) for line in re.findall(r"(?m)^\*.*", text)]


@pytest.fixture()
def words(tmp_path, data_root):
    """Function that gives the command line of a run in a folder, then config pairs."""

    def words(folder: str, *pairs: str, trainer: str = "Failing") -> list[str]:
        return [
            *("--trainer", trainer, "--root", str(data_root), "--seed", "1", "--backbone", "tiny"),
            *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")),
            *("--trainer-file", str(tmp_path / "mine.py"), "--output-dir", str(tmp_path / folder)),
            *("DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "4", "USE_CUDA", "False"),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", "5", "DATALOADER.TEST.BATCH_SIZE", "7"),
            *("OPTIM.MAX_EPOCH", "3", "TRAIN.CHECKPOINT_FREQ", "1", *pairs),
        ]

    (tmp_path / "mine.py").write_text(OWN_FILE)
    return words


#: registers the images, a method that fails in one of several processes, and one that says nothing
OWN_FILE = """
import os

import tests.conftest
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import CoOp


@TRAINER_REGISTRY.register()
class Failing(CoOp):
    def forward_backward(self, batch):
        if os.environ.get("RANK") == "1" and self.epoch == 1:
            raise ValueError("a bad image")
        return super().forward_backward(batch)


@TRAINER_REGISTRY.register()
class Silent(CoOp):
    splits_batches = False
"""


@pytest.fixture()
def process(monkeypatch):
    """What a command changes in its process: the trainers, and the console."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
    monkeypatch.setattr(sys, "stdout", sys.stdout)


@pytest.mark.usefixtures("process")
def test_a_run_goes_on_after_a_failure_with_other_numbers_of_processes(tmp_path, words):
    """2, 1 and 3 processes train an epoch each; batches of 5 are of 1, 2 and 2 images for 3."""

    def alone(folder: str, epochs: int):
        pairs = ("INPUT.SEEDED_VIEWS", "True")
        cfg = train.setup_cfg(train.build_parser().parse_args(words(folder, *pairs)))
        set_random_seed(1)
        trainer = build_trainer(cfg)
        trainer.max_epoch = epochs
        trainer.train()
        return trainer

    process = start(torchrun(2, "train.py", *words("shared")))
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert out.count("Note: 2 processes share this run, so INPUT.SEEDED_VIEWS is True") == 1
    assert "[rank 1] error: unexpected ValueError: a bad image" in err
    saved = tmp_path / "shared/prompt_learner"
    assert (saved / "checkpoint").read_text() == "model.pth.tar-1\n"
    alone("shared", epochs=2)
    printed = finished(start(torchrun(3, "train.py", *words("shared"))))
    assert "(will resume training)" in printed and printed.count("* accuracy: ") == 1

    reference = alone("alone", epochs=3)
    for epoch in (1, 2, 3):
        ours, theirs = (
            torch.load(folder / f"model.pth.tar-{epoch}", weights_only=True)
            for folder in (saved, tmp_path / "alone/prompt_learner")
        )
        for key, value in theirs["state_dict"].items():
            assert relative_error(ours["state_dict"][key], value) < LIMIT, (epoch, key)
        random, its_random = (c["trainer_state"]["random"] for c in (ours, theirs))
        assert torch.equal(random["torch"], its_random["torch"])
    record = json.loads((tmp_path / "shared/result.json").read_text())
    assert record["device"]["processes"] == 3
    assert record["result"]["total"] == 30
    metrics = record["result"]["metrics"]
    assert {key: metrics[key] for key in ("accuracy", "macro_f1")}.items() <= (
        reference.run_notes.results.items()
    )
    # each of the three wrote once: the log of two (the other one printed only), scalars of three
    assert (tmp_path / "shared/log.txt").read_text().count("Building transform_train") == 2
    assert len(list((tmp_path / "shared/tensorboard").iterdir())) == 3


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("changes", "says"),
    {
        "seeds": ({"--seed": ("--seeds", "1,2")}, "--seeds trains seeds together in one process"),
        "no seed": ({"--seed": ("--seed", "-1")}, "need its seed, but SEED is -1"),
        "views": ({"INPUT.SEEDED_VIEWS": ("INPUT.SEEDED_VIEWS", "False")}, "SEEDED_VIEWS True"),
        "graph": ({"OPTIM.CUDA_GRAPH": ("OPTIM.CUDA_GRAPH", "True")}, "CUDA_GRAPH captures"),
        "one GPU": ({"DEVICE": ("DEVICE", "cuda:1")}, "each on the GPU of its number"),
        "own": ({}, "Silent does not say that its loss"),
    }.values(),
)
def test_what_several_processes_cannot_share(monkeypatch, capsys, tmp_path, words, changes, says):
    for name in ranks.VARIABLES:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("RANK", "0")
    own = words("{seed}", trainer="CoOp" if changes else "Silent")
    for name, pair in changes.items():
        place = own.index(name) if name in own else len(own)
        own[place : place + 2] = pair
    assert train.main(own) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "{seed}").exists()
