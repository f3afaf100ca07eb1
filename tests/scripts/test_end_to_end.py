"""The scripts for real: a short base-to-new run on the embedded digits, and its table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What the scripts read from the environment; all they write stays in ``folder``."""
    (folder / "data").mkdir()
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHON": sys.executable,
        "DATA": str(folder / "data"),
        "OUTPUT": str(folder / "output"),
        **more,
    }


@pytest.mark.parametrize("method", ["mmlop", "zsclip"])
def test_base2new_from_the_images_to_the_table(method, tmp_path):
    env = environment(tmp_path, SHOTS="1", TAG="short")

    def script(protocol: str) -> subprocess.CompletedProcess:
        words = ["digits", "0", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False"]
        path = ROOT / "scripts" / method / f"{protocol}.sh"
        done = subprocess.run(
            ["bash", path, *words], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done

    script("base2new_train")
    script("base2new_test")
    (log,) = (tmp_path / "output/base2new/test_new").rglob("log.txt")
    assert "SUBSAMPLE_CLASSES: new" in log.read_text()
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
    shots, parameters = {"mmlop": (1, 1764), "zsclip": (0, 0)}[method]
    assert (row["shots"], row["seeds"]) == (shots, 1)
    assert (row["backbone"], row["parameters"]) == ("tiny-2", parameters)
    logged = {
        part: (
            Path(env["OUTPUT"]).glob(f"base2new/{folder}/digits/shots_1/*/tiny-short/seed0/log.txt")
        )
        for part, folder in (("base", "train_base"), ("new", "test_new"))
    }
    for part, logs in logged.items():
        (log,) = logs
        assert f"* accuracy: {row[part]:.2f}%" in log.read_text()


def test_transfer_from_digits_to_shapes(tmp_path):
    env = environment(tmp_path, SHOTS="1", TAG="short", PROTOCOL="xd", SOURCE="digits")
    pairs = ["OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]

    def script(*words: str, **more: str) -> subprocess.CompletedProcess:
        command = ["bash", ROOT / "scripts" / words[0], *words[1:], *pairs]
        return subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=300)

    # of dtd there are no images
    done = script("all.sh", "coop", "dtd shapes", "0")
    assert (done.returncode, done.stdout) == (1, "2 done, 1 failed\n")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: coop xd_test dtd seed 0 failed: error: DescribableTextures: ")
    again = script("all.sh", "coop", "shapes", "0")
    assert (again.returncode, again.stdout) == (0, "2 finished before\n")

    output = Path(env["OUTPUT"])
    trained = output / "digits/CoOp/tiny-short_1shots/seed0"
    log = output / "evaluation/CoOp/tiny-short_1shots/from_digits/shapes/seed0/log.txt"
    assert f'Loading weights to prompt_learner from "{trained}' in log.read_text()
    table = [sys.executable, ROOT / "parse_test_res.py", "--output", output, "--format", "json"]
    rows = json.loads(subprocess.run(table, capture_output=True, text=True).stdout)
    assert {row["dataset"] for row in rows} == {"digits", "shapes"}
    (row,) = (row for row in rows if row["dataset"] == "shapes")
    assert row["protocol"] == "cross"
    assert f"* accuracy: {row['accuracy']:.2f}%" in log.read_text()


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    env = environment(tmp_path, SHOTS="4", TAG="killed")
    command = ["bash", str(ROOT / "scripts/coop/base2new_train.sh"), "digits", "0"]
    command += ["OPTIM.MAX_EPOCH", "40", "USE_CUDA", "False"]
    run = tmp_path / "output/base2new/train_base/digits/shots_4/CoOp/tiny-killed/seed0"
    first = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    checkpoint, deadline = run / "prompt_learner" / "model.pth.tar-5", time.time() + 200
    while not checkpoint.exists():
        assert first.poll() is None, "the run ended before its first checkpoint"
        assert time.time() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert "Finish training" not in (run / "log.txt").read_text()

    second = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert "(will resume training)" in second.stdout
    epochs = re.findall(r"epoch \[(\d+)/40\]", second.stdout)
    assert int(epochs[0]) > 5
    assert epochs[-1] == "40"
    assert (run / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-40\n"


def test_main_line_without_the_images_says_what_to_do(tmp_path):
    env = environment(tmp_path)
    command = ["bash", str(ROOT / "scripts/mmlop/base2new_train.sh"), "imagenet", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ImageNet: folder ")
    assert str(tmp_path / "data" / "imagenet") in line
    assert "docs/datasets.md" in line
