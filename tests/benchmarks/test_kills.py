"""The benchmark of kills: its commands are valid, kills are seen, its counts are right."""

from __future__ import annotations

import json
import random

import torch

import train
from benchmarks import kills


def test_commands(tmp_path):
    for what in (*kills.METHODS, kills.TOGETHER):
        words = kills.command(what, tmp_path, save_minutes=5)
        args = train.build_parser().parse_args(words)
        assert (args.seeds == list(kills.SEEDS)) == (what == kills.TOGETHER)
        cfg = train.setup_cfg(args)
        assert cfg.TRAIN.SAVE_MINUTES == 5 and what.startswith(cfg.TRAINER.NAME)


def test_a_kill_is_seen_and_so_is_another_learner(tmp_path):
    rng, kill = random.Random(0), "SIGKILL, first epoch"
    row = kills.try_kill(kills.Starter(), "CoOp", tmp_path, 60.0, rng, kill)
    assert row["hit"] and row["status"] == -9 and row["starts"] == 1 and "problem" not in row
    saved, other = kills.saved_last(tmp_path), kills.saved_last(tmp_path)
    assert saved.keys() == {"seed1"} and kills.is_equal(saved, other)
    other["seed1"]["state_dict"]["ctx"] += torch.finfo(torch.float32).eps
    assert not kills.is_equal(saved, other)
    assert not kills.left_over(tmp_path)
    (tmp_path / "out" / "seed1" / "unfinished.pth").touch()
    assert kills.left_over(tmp_path) == ["out/seed1/unfinished.pth"]


def test_document_has_what_was_measured():
    rows = json.loads(kills.OUT.read_text("utf-8"))["kills"]
    assert kills.table(rows) in kills.DOCUMENT.read_text("utf-8")
    assert sum(row["hit"] for row in rows) >= 50
    assert {row["run"] for row in rows if row["hit"]} == {*kills.METHODS, kills.TOGETHER}
    one = {"signal": "SIGKILL", "moment": "rename", "hit": True, "problem": None, "differs": False}
    lost, other = one | {"problem": "exit status 2"}, one | {"differs": True}
    last = kills.table([one, lost, other, one | {"hit": False}]).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[3:-1]] == ["3", "1", "1", "1"]
