"""Claims: one process at a time does a run, whatever became of those that did it before."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import claims
from support.claims import FILE, Claim, holder_of
from support.command_line import UNFINISHED

ROOT = Path(__file__).parents[2]


def python(code: str, *words: object) -> subprocess.Popen:
    """A process that runs code with support.claims, and prints."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys, time\nfrom support.claims import *\n{code}"]
        + [str(word) for word in words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
with Claim(sys.argv[1:]) as claim:
    print("busy" if claim.holder else "held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the claim to the folder ``run``."""
    process = python(HOLD, tmp_path / "run")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_claim_is_held_until_released_or_its_process_has_ended(tmp_path, holder):
    run = tmp_path / "run"
    with Claim([tmp_path / "other", run]) as claim:
        assert f"process {holder.pid} on " in str(claim.holder)
    assert not (tmp_path / "other").exists(), "of several folders all are claimed, or none"
    holder.kill()
    holder.wait()
    assert (run / FILE).exists() and holder_of(run) is None
    with Claim([tmp_path / "other", run]) as claim:
        assert claim.holder is None
        assert holder_of(run).processes[0][0] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_outlives_the_first_holds_it_on(tmp_path, holder):
    with Claim([tmp_path / "mine"]) as claim:
        claim.add_process(holder.pid)
        content = json.loads((tmp_path / "mine" / FILE).read_text())
    content["processes"][0][1] = "0"  # the first has ended; another has its number
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE).write_text(json.dumps(content))
    assert holder_of(tmp_path / "mine") is not None
    holder.kill()
    holder.wait()
    assert holder_of(tmp_path / "mine") is None


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(
            {"host": "far", "machine": "far", "processes": [[1, "1"]], "since": "", "token": "t"}
        ),
        "",
        "[]",
        "\x00\x00",
        "[" * 100_000,
        '{"processes": [[Infinity, "1"]]}',
    ],
    ids=["another machine", "empty", "other JSON", "no text", "deep", "no number"],
)
def test_what_cannot_be_seen_counts_by_its_age(content, tmp_path):
    (tmp_path / FILE).write_text(content)
    now = time.time()
    ages = ((0, True), (claims.STALE - 60, True), (claims.STALE + 60, False), (-9999, False))
    for age, counts in ages:
        os.utime(tmp_path / FILE, (now - age, now - age))
        assert (holder_of(tmp_path) is not None) == counts
    with Claim([tmp_path]) as claim:
        assert claim.holder is None


def test_it_is_renewed_and_its_loss_is_noticed(tmp_path, monkeypatch, wait_for):
    monkeypatch.setattr(claims, "RENEW", 0.01)
    lost = []
    with Claim([tmp_path], lambda: lost.append(True)) as claim:
        os.utime(tmp_path / FILE, (0, 0))
        claim.keep()
        wait_for(lambda: (tmp_path / FILE).stat().st_mtime)
        content = json.loads((tmp_path / FILE).read_text()) | {"token": "another"}
        (tmp_path / "new").write_text(json.dumps(content))
        os.replace(tmp_path / "new", tmp_path / FILE)
        wait_for(lambda: lost)
    assert (tmp_path / FILE).exists(), "that of the other one stays"


RACE = """
end = time.time() + 1.5
while time.time() < end:
    with Claim(sys.argv[2:]) as claim:
        if claim.holder is None:
            with open(sys.argv[1], "x"):
                print("held", flush=True)
            os.unlink(sys.argv[1])
            if os.getpid() % 2:  # leaves a claim that no longer counts
                os._exit(0)
"""


def test_of_many_at_once_one_holds_it(tmp_path):
    """Some of them end without releasing it, so that others take it over."""
    racing = [python(RACE, tmp_path / "alone", tmp_path / "run") for _ in range(6)]
    printed = [process.communicate(timeout=60)[0] for process in racing]
    assert [process.returncode for process in racing] == [0] * 6
    assert sum(map(len, printed)) > 0
    assert not list(tmp_path.glob("**/*.taken-over"))


def test_two_calls_of_one_run(clone, wait_for):
    """The second waits for the first, or skips the run, and says whom it leaves it to."""
    words = ("scripts/coop/base2new_train.sh", "digits", "1")
    first = clone.start(*words, TAKES="300")
    folder = clone.folder / "output/base2new/train_base/digits/shots_16/CoOp/tiny/seed1"
    wait_for((folder / FILE).exists)
    skipping = clone.call(*words, BUSY="skip")
    assert skipping.returncode == UNFINISHED
    (line,) = skipping.stdout.splitlines()
    assert re.fullmatch(r"busy: \S+/seed1 is done by process \d+ on \S+ since \S+", line)
    second = clone.start(*words)
    assert re.fullmatch(
        r"busy: \S+/seed1 is done by .*; waiting for it\n", second.stdout.readline()
    )
    (clone.folder / "go-on").touch()
    finished, error = second.communicate(timeout=60)
    assert (first.wait(), second.returncode, error) == (0, 0, "")
    assert finished.startswith("finished already: ")
    first.communicate()
    assert len(clone.runs()) == 1
    assert not (folder / FILE).exists()
    assert clone.call(*words, BUSY="run").stderr == "error: BUSY is 'run': use wait or skip\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for it")
def test_a_killed_call_ends_its_run(clone, wait_for):
    words = ("scripts/coop/base2new_train.sh", "digits", "1")
    first = clone.start(*words, TAKES="300")
    wait_for(lambda: (clone.folder / "calls.txt").exists() and clone.runs())
    (claim,) = clone.folder.rglob(FILE)
    wait_for(lambda: len(json.loads(claim.read_text())["processes"]) == 2)
    first.kill()
    assert first.wait() == -9
    assert "** Arguments **" in clone.call(*words).stdout
    assert len(clone.runs()) == 2
