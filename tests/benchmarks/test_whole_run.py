"""The benchmark of start-up and whole runs: its commands are valid, its clock stops in time."""

from __future__ import annotations

import json
import os
import sys

import pytest

import train
from benchmarks import whole_run


def test_commands(tmp_path):
    for pairs, _ in whole_run.VARIANTS.values():
        _, script, *words = whole_run.command("CoOp", tmp_path, *pairs)
        assert script == "train.py"
        cfg = train.setup_cfg(train.build_parser().parse_args(words))
        assert cfg.MODEL.FAST_ENCODERS == (not pairs)
        assert (cfg.DATALOADER.CACHE == "none") == bool(pairs)
        assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"


def test_clock():
    env = dict(os.environ)
    work = "import time; print('start'); time.sleep(0.3); print('epoch [1/2]', flush=True)"
    whole = whole_run.timed([sys.executable, "-c", work], env)
    assert whole["wall"] > 0.3 > whole["cpu"] > 0
    endless = f"{work}; time.sleep(600)"
    first = whole_run.timed([sys.executable, "-c", endless], env, until="epoch [1/")
    assert 0.3 < first["wall"] < 60
    with pytest.raises(RuntimeError, match="no such thing"):
        whole_run.timed([sys.executable, "-c", "raise SystemExit('no such thing')"], env)
    with pytest.raises(RuntimeError, match="start"):
        whole_run.timed([sys.executable, "-c", work], env, until="never printed")


def test_document_has_what_was_measured():
    results = json.loads(whole_run.OUT.read_text("utf-8"))
    table = whole_run.table(results)
    assert table in whole_run.DOCUMENT.read_text("utf-8")
    off = {"what": "whole run, X", "variant": "everything off", "wall": [3, 5], "cpu": [4, 8]}
    on = {**off, "variant": "fast, caches filled", "cpu": [2, 2]}
    assert "| 3.0 (2.0 to 4.0)  |" in whole_run.table([off, on])
