"""Sweeps on this machine: plan, places on GPUs, what is tried again, and two sweeps at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import scripts.all
from results.report.gather import failures
from scripts.sweep import sweep
from scripts.sweep.board import Board
from scripts.sweep.cluster import queued
from scripts.sweep.gpus import places, visible_gpus
from scripts.sweep.runner import add_line, keep_left_logs
from scripts.sweep.survey import Costs, Found, describe, shortage, spell

ROOT = Path(__file__).parents[2]
TWO = "GPU 0: NVIDIA A (UUID: GPU-1)\nGPU 1: NVIDIA B (UUID: GPU-2)"
PARTS = "GPU 0: NVIDIA A (UUID: GPU-1)\n  MIG 3g.20gb Device 0: (UUID: MIG-7)"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Function that puts an nvidia-smi on PATH which lists these GPUs."""

    def put(listed: str, status: int = 0) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho '{listed}'\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.parametrize(
    ("listed", "status", "env", "expected"),
    [
        (TWO, 0, {}, ["0", "1"]),
        (PARTS, 0, {}, ["MIG-7"]),
        ("No devices were found", 6, {}, []),
        (TWO, 0, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (TWO, 0, {"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        (TWO, 0, {"CUDA_VISIBLE_DEVICES": "3, GPU-2"}, ["3", "GPU-2"]),
        (TWO, 0, {"CUDA_VISIBLE_DEVICES": "0,-1,1"}, ["0"]),
    ],
)
def test_gpus_that_a_run_may_see(listed, status, env, expected, nvidia_smi):
    nvidia_smi(listed, status)
    assert visible_gpus(env) == expected


@pytest.mark.parametrize(
    ("env", "gpus", "expected"),
    [
        ({}, "", [None]),
        ({"JOBS": "3"}, "", [None] * 3),
        ({"JOBS": "3", "JOBS_PER_GPU": "2"}, "", [None] * 3),
        ({}, "01", ["0", "1"]),
        ({"JOBS_PER_GPU": "2"}, "01", ["0", "1", "0", "1"]),
        ({"JOBS": "3"}, "01", ["0", "1", "0"]),
        ({"JOBS": "3", "JOBS_PER_GPU": "2"}, "01", ["0", "1", "0"]),
        ({"JOBS": "9", "JOBS_PER_GPU": "1"}, "01", ["0", "1"]),
    ],
)
def test_places_of_runs(env, gpus, expected):
    found = places(env, list(gpus))
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in found] == expected


def test_the_plan_tells_what_is_left_and_how_long_it_takes():
    def call(seed: int, dataset: str = "dtd") -> tuple[str, ...]:
        return "coop", "fewshot", dataset, "4", str(seed)

    found = {
        call(1): Found("finished", seconds=100),
        call(2): Found("finished", seconds=200),
        call(3): Found("new"),
        call(4): Found("started"),
        call(5): Found("busy", "..."),
        call(1, "sun397"): Found("new"),
        ("vpt", "base2new_test", "dtd", "1"): Found("refused", "no such file"),
        ("vpt", "xd_train", "dtd", "1"): Found("new"),
    }
    costs = Costs(found)
    assert costs.of(call(9)) == costs.of(call(9, "sun397")) == 150
    lines = describe(found, costs, 2, "on GPU 0, 1").splitlines()
    table = [line.split() for line in lines]
    assert ["coop", "fewshot", "6", "2", "1", "1", "2", "0", "2", "min"] in table
    assert "refused: vpt base2new_test dtd seed 1: no such file" in lines
    assert lines[-1] == (
        "8 runs, 5 left, 2 at a time on GPU 0, 1: about 5 min, and 1 run of unknown length"
    )
    board = Board([call(3), call(4)], 2, costs, 2)
    assert board.time_left() == "about 2 min left"
    board.ended(call(3), "done", 450)
    assert board.time_left() == "about 4 min left", "250 s each now, and one cannot be shared"
    assert board.summary() == "1 done, 2 finished before"


def test_a_time_left_that_is_not_known_is_not_told():
    calls = [("coop", "fewshot", "dtd", "4", str(seed)) for seed in range(9)]
    other = "coop", "base2new_test", "dtd", "1"
    costs = Costs({calls[0]: Found("finished", seconds=1000)})
    board = Board([*calls[1:], other], 0, costs, 4)
    assert board.time_left() == "", "nothing tells of the other one"
    board.ended(other, "done", 100)
    assert board.time_left() == "about 33 min left"
    for call in calls[1:-1]:
        board.ended(call, "failed")
    board.ended(calls[1], "failed")
    assert board.summary() == "1 done, 7 failed", "each end counts once"
    assert board.time_left() == "about 17 min left"
    costs = Costs({calls[0]: Found("finished", seconds=0.001)})
    board = Board([calls[1]], 0, costs, 4)
    board.started(calls[1], None)
    time.sleep(0.002)
    assert board.time_left() == "", "it runs for longer than it should"


def test_broken_lines_of_notes_end_nothing(tmp_path, monkeypatch):
    env = {"DATA": "/d"}
    entry = {"job": "17_0", "calls": [["coop", "fewshot"]], "settings": env}
    file = tmp_path / "submitted.jsonl"
    file.write_bytes(b'\xff{"job"\n[1]\n\n{}\n"17_0"\n{"job": [17]}\n{"job": "1')
    add_line(file, entry)
    add_line(file, entry | {"job": "18_0"})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="17_0\n1\n"))
    assert queued(tmp_path, env) == {("coop", "fewshot"): "17_0"}
    assert len(file.read_bytes().splitlines()) == 9

    logs = tmp_path / "all"
    logs.mkdir()
    (logs / "a.txt").touch()
    note = {"log": "a.txt", "time": "2999-01-01T00:00:00+00:00", "run": "a", "reason": "it broke"}
    (logs / "failures.jsonl").write_bytes(b"\xff\n" + b"[" * 100_000 + b'\n{"log": 5')
    add_line(logs / "failures.jsonl", note | {"status": 1})
    assert failures(tmp_path) == [("a", "it broke (status 1)")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (12000, "3 h 20 min"), (190800, "2 d 5 h")],
)
def test_times_in_words(seconds, text):
    assert spell(seconds) == text


def test_a_dry_run_prints_the_plan_only(clone):
    done = clone.call("scripts/all.sh", "coop zsclip", "digits", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n12 runs, 12 left, one at a time on the CPU: no " in done.stdout
    assert not (clone.folder / "output").exists()


def test_what_ends_is_tried_again_if_that_can_help(clone):
    """Unfinished runs go on, failures are tried again for so often, wrong input never is."""
    train = "train_base/digits/shots_16/CoOp/tiny/seed"
    ends = {
        f"{train}1": [75, 130, 1],
        f"{train}2": [2],
        f"{train}3": [1, 137, 1],
        "test_new/digits/shots_16/CoOp/tiny/seed1": [1],
    }
    env = {"ENDS": json.dumps(ends), "RETRIES": "2", "JOBS": "3"}
    done = clone.call("scripts/all.sh", "coop", "digits", **env)
    assert (done.returncode, done.stdout) == (1, "2 done, 2 failed, 2 not run\n")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sorted(line.partition(" (")[0] for line in errors) == [
        "error: coop base2new_train digits seed 2 failed: ended 2",
        "error: coop base2new_train digits seed 3 failed: ended 1",
    ]
    notes = (clone.folder / "output/all/failures.jsonl").read_text().splitlines()
    kept = [(note["call"][1:], note["status"], note["again"]) for note in map(json.loads, notes)]
    assert sorted(kept) == sorted(
        [
            (["base2new_train", "digits", "1"], 75, True),
            (["base2new_train", "digits", "1"], 130, True),
            (["base2new_train", "digits", "1"], 1, True),
            (["base2new_train", "digits", "2"], 2, False),
            (["base2new_train", "digits", "3"], 1, True),
            (["base2new_train", "digits", "3"], 137, True),
            (["base2new_train", "digits", "3"], 1, False),
            (["base2new_test", "digits", "1"], 1, True),
        ]
    )


def test_logs_of_killed_sweeps_get_their_names(tmp_path):
    host = socket.gethostname()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    for end in (f"{host}-{ended.pid}", f"{host}-{os.getpid()}", "far.away-1"):
        (tmp_path / f"a-{end[-3:]}.txt.{end}").write_text(end)
    keep_left_logs(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert f"a-{str(ended.pid)[-3:]}.txt" in names and len(names) == 3
    assert {name.partition(".txt.")[2] for name in names} == {
        "",
        f"{host}-{os.getpid()}",
        "far.away-1",
    }


def test_two_sweeps_into_one_folder_on_two_gpus(clone, nvidia_smi):
    """Each run is done once, each on one GPU, and both sweeps end when all are."""
    nvidia_smi(TWO)
    words = ("scripts/all.sh", "coop zsclip", "digits shapes", "1")
    env = {"PATH": os.environ["PATH"], "TAKES": "0.5"}
    both = [clone.start(*words, **env) for _ in range(2)]
    printed = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    runs = clone.runs()
    assert len(runs) == len(set(runs)) == 8
    counts = [
        dict(reversed(part.split(" ", 1)) for part in out.strip().split(", ")) for out, _ in printed
    ]
    assert sum(int(count.get("done", 0)) for count in counts) == 8
    assert all(sum(map(int, count.values())) == 8 for count in counts)
    logs = [log.read_text() for log in (clone.folder / "output/all").glob("*.txt")]
    assert {line for log in logs for line in log.splitlines() if "GPU" in line} == {
        "GPU 0",
        "GPU 1",
    }


def test_a_sweep_from_python(tmp_path, monkeypatch, capsys):
    for name in ("DATA", "OUTPUT", "JOBS", "EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    result = sweep(
        ["coop", "MMLoP"],
        "dtd",
        seeds=[1, 2],
        opts=("USE_CUDA", "False"),
        protocol="fewshot",
        shots=[1, "all"],
        jobs=3,
        output="here",
        together=True,
        dry_run=True,
    )
    assert list(result.found) == [
        (method, "fewshot", "dtd", shots, "1,2", "USE_CUDA", "False")
        for method in ("coop", "mmlop")
        for shots in ("1", "all")
    ]
    assert {found.state for found in result.found.values()} == {"new"}
    assert (result.counts, result.failures, Path.cwd()) == ({}, [], tmp_path)
    assert "4 runs, 4 left, 3 at a time on the CPU" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no method 'cop'"):
        sweep("cop")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("shot", "shots"), ("sedes", "seeds"), ("job_per_gpu", "jobs_per_gpu"), ("SHOTS", "shots")],
)
def test_names_that_a_sweep_does_not_take(name, meant):
    with pytest.raises(TypeError, match=rf"{name}.*did you mean {meant}\?"):
        sweep("coop", "digits", dry_run=True, **{name: [1]})


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["DATASET.NUM_SHOTS", "2"], "DATASET.NUM_SHOTS is set by SHOTS"),
        (["OPTIM.MAX_EPOCHS", "2"], "unknown config key OPTIM.MAX_EPOCHS; did you mean OPTIM.MAX_"),
        (["OPTIM.MAX_EPOCH"], "a key has no value in: OPTIM.MAX_EPOCH"),
        (["OPTIM.LR=1"], "OPTIM.LR=1: write key and value as two words"),
        (["OPTIM.LR", "fast"], "config key OPTIM.LR takes float values"),
        (["TRAINER.COOP.N_CTXX", "4"], "unknown config key TRAINER.COOP.N_CTXX; did you mean TRAI"),
        (["TRAINER.MMLOP.RANK", "4"], "TRAINER.MMLOP.RANK is a setting of another method: CoOp"),
    ],
)
@pytest.mark.parametrize("last", [[], ["--dry-run"]])
def test_settings_that_every_run_would_refuse(pairs, message, last, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    assert scripts.all.main(["zsclip coop", "digits", "1", *pairs, *last]) == 2
    printed = capsys.readouterr()
    assert (printed.out, (tmp_path / "output").exists()) == ("", False)
    assert printed.err.splitlines()[-1].startswith(f"error: {message}")
    assert "runs" not in printed.err


def test_settings_of_a_method_are_known(tmp_path, capsys):
    pairs = ("TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "1")
    sweep("coop", "digits", [1], pairs, output=tmp_path, dry_run=True)
    assert "2 runs, 2 left" in capsys.readouterr().out


def test_a_sweep_that_will_not_fit_on_the_disk_says_so(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").write_bytes(bytes(3_000_000))
    found = {
        ("coop", "fewshot", "dtd", "4", "1"): Found("finished", folders=(str(run),)),
        ("coop", "fewshot", "dtd", "4", "2"): Found("new"),
        ("coop", "fewshot", "dtd", "4", "3"): Found("started"),
    }
    assert shortage(found, tmp_path) is None
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert shortage(found, tmp_path).startswith("2 runs need about 6 MB (3 MB each), and 5 MB are")
