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
    starter = kills.Starter()
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    words = kills.command("CoOp", straight, save_minutes=5)
    assert kills.finish(starter, words, straight) == (0, 1)
    row = kills.try_kill(starter, "CoOp", killed, 60.0, random.Random(0), "SIGKILL, first epoch")
    assert row["hit"] and row["status"] == -9 and row["starts"] == 1 and "problem" not in row
    saved = kills.saved_last(killed)
    assert saved.keys() == {"seed1"} and kills.is_equal(saved, kills.saved_last(straight))
    saved["seed1"]["state_dict"]["ctx"] += torch.finfo(torch.float32).eps
    assert not kills.is_equal(saved, kills.saved_last(straight))
    (killed / "out" / "seed1" / "unfinished.pth").touch()
    assert kills.left_over(killed) == ["out/seed1/unfinished.pth"]


def test_document_has_what_was_measured():
    rows = json.loads(kills.OUT.read_text("utf-8"))["kills"]
    assert kills.table(rows) in kills.DOCUMENT.read_text("utf-8")
    assert sum(row["hit"] for row in rows) >= 50
    assert {row["run"] for row in rows if row["hit"]} == {*kills.METHODS, kills.TOGETHER}
    one = {"signal": "SIGKILL", "moment": "rename", "hit": True, "problem": None, "differs": False}
    lost, other = one | {"problem": "exit status 2"}, one | {"differs": True}
    last = kills.table([one, lost, other, one | {"hit": False}]).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[3:-1]] == ["3", "1", "1", "1"]
