"""The scripts for real: a short base-to-new run on the embedded digits, and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("method", ["mmlop", "zsclip"])
def test_base2new_from_the_images_to_the_table(method, tmp_path):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHON": sys.executable,
        "DATA": str(tmp_path / "data"),
        "OUTPUT": str(tmp_path / "output"),
        "SHOTS": "1",
        "TAG": "short",
    }

    def script(protocol: str) -> subprocess.CompletedProcess:
        words = ["digits", "0", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False"]
        path = ROOT / "scripts" / method / f"{protocol}.sh"
        done = subprocess.run(
            ["bash", path, *words], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done

    script("base2new_train")
    assert "SUBSAMPLE_CLASSES: new" in script("base2new_test").stdout
    for protocol in ("base2new_train", "base2new_test"):
        assert script(protocol).stdout.startswith("finished already: ")

    done = subprocess.run(
        [sys.executable, ROOT / "parse_test_res.py", "--output", env["OUTPUT"], "--format", "json"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)
    assert (row["dataset"], row["config"]) == ("digits", "tiny-short")
    assert (row["shots"], row["seeds"]) == (1, 1)
    logged = {
        part: (
            Path(env["OUTPUT"]).glob(f"base2new/{folder}/digits/shots_1/*/tiny-short/seed0/log.txt")
        )
        for part, folder in (("base", "train_base"), ("new", "test_new"))
    }
    for part, logs in logged.items():
        (log,) = logs
        assert f"* accuracy: {row[part]:.2f}%" in log.read_text()
