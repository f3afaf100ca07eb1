"""Sweeps as jobs: what is submitted, what the jobs do, and what becomes of those that are ended."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

import scripts.all
from scripts.run import FAILS
from scripts.sweep.cluster import Cluster, read_cluster, submit
from scripts.sweep.runner import Task

submitit = pytest.importorskip("submitit")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("time: 90", "time", 90),
        ("time: 4:00:00", "time", 240),
        ("time: 10:30", "time", 11),
        ("time: 1-12", "time", 36 * 60),
        ("time: 1-12:30", "time", 36 * 60 + 30),
        ("time: 0:00:30", "time", 1),
        ("gpus: a100:2", "gpus", "a100:2"),
        ("setup: module load cuda", "setup", ["module load cuda"]),
        ("extra: {reservation: x}", "extra", {"reservation": "x"}),
        ("", "memory", "16G"),
    ],
)
def test_settings_of_a_cluster(text, key, value, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{text}\nsignal_delay: 20\n")
    assert getattr(read_cluster(file), key) == value


def test_the_example_has_the_defaults():
    assert read_cluster(ROOT / "configs/clusters/example.yaml") == read_cluster(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "no use for 'partitoin'; there are: .*; did you mean partition?"),
        ("time: long", "time must be minutes, .*, not 'long'"),
        ("time: 0", "time must be more than no time"),
        ("cpus: 0", "cpus must be a whole number from 1 on, not '0'"),
        ("gpus: many", "gpus must be a number of GPUs, or type:number, not 'many'"),
        ("memory: lots", "memory must be a size such as 16G"),
        ("setup: {a: b}", "setup must be a list of shell commands"),
        ("extra: [a]", "extra must be a mapping of options of sbatch"),
        ("- a", "must hold 'key: value' lines"),
        ("a: [", "is not valid YAML"),
        ("time: 1\nsignal_delay: 60", "signal_delay is as long as time, 1 min"),
    ],
)
def test_settings_that_cannot_be(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        read_cluster(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(FileNotFoundError, match="did you mean mine"):
        read_cluster(tmp_path / "mime.yaml")


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """Folder of a stand-in for SLURM, whose commands are on PATH."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("sbatch", "srun", "sacct", "squeue", "scontrol"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        fake = Path(__file__).with_name("fake_slurm.py")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} {name} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "{partition: gpu, account: me, gpus: a100:1, time: 1-00:00:00, memory: 32G, cpus: 6, "
        "parallel: 5, signal_delay: 30, setup: [echo set-up], extra: {reservation: mine}}"
    )
    return str(file)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_sweep_as_jobs_of_slurm(clone, slurm, settings, wait_for):
    """One array of chains, one ended for its time; none is submitted again while it is there."""
    words = ("scripts/all.sh", "coop", "digits", "1 2")
    env = {"EXECUTOR": "slurm", "CLUSTER": settings, "FAKE_SLURM": str(slurm)}
    env |= {"PATH": os.environ["PATH"], "TAKES": "300"}
    env |= {"SLOW": "train_base/digits/shots_16/CoOp/tiny/seed1"}
    done = clone.call(*words, "--no-wait", **env)
    assert (done.returncode, done.stdout) == (0, "4 in the queue\n"), done.stderr
    assert "submitted 2 jobs: 17" in done.stderr

    script = (slurm / "script.sh").read_text().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert directives >= {
        *("--partition=gpu", "--account=me", "--gpus-per-node=a100:1", "--time=1440"),
        *("--mem=32G", "--cpus-per-task=6", "--signal=USR2@30", "--reservation=mine"),
        *("--array=0-1%2", "--job-name=sweep", "--open-mode=append"),
    }
    assert "echo set-up" in script
    again = clone.call(*words, **env)
    assert (again.returncode, again.stdout) == (0, "4 in the queue\n"), again.stderr

    logs = clone.folder / "output/all"
    name = "coop-base2new_train-digits-seed-1.txt"  # and the job's host and process
    wait_for(lambda: ["GPU 5" for log in logs.glob(f"{name}.*") if "GPU 5" in log.read_text()])
    (slurm / "time-is-up").touch()
    wait_for((slurm / "ended-17_1").exists)
    trained = [line for line in clone.runs() if "--eval-only" not in line]
    assert [line.count("--seed 1 ") for line in trained] == [1, 1, 0], "continued once"
    assert len(clone.runs()) == 5 and len(list(clone.folder.glob("output/**/saved"))) == 1
    assert clone.call(*words, **env).stdout == "4 finished before\n"


def test_jobs_are_waited_for_and_say_what_failed(clone, slurm, settings):
    env = {"EXECUTOR": "slurm", "CLUSTER": settings, "FAKE_SLURM": str(slurm)}
    env |= {"PATH": os.environ["PATH"], "BREAK": "test_new", "RETRIES": "0"}
    done = clone.call("scripts/all.sh", "coop", "digits", "1", **env)
    assert (done.returncode, done.stdout) == (1, "1 done, 1 failed\n"), done.stderr
    log = clone.folder / "output/all/coop-base2new_test-digits-seed-1.txt"
    assert done.stderr.splitlines()[-1] == (
        f"error: coop base2new_test digits seed 1 failed: the reason (status 1, log {log})"
    )


def test_debug_runs_the_jobs_in_this_process(clone):
    """With the set-up of the cluster in front of each run; what ends is told once."""
    file = clone.folder / "cluster.yaml"
    file.write_text("setup: ['echo \"set up with $# words\"', 'export CUDA_VISIBLE_DEVICES=7']")
    words = ("scripts/all.sh", "coop", "digits", "1 2", "--executor", "debug", "--cluster", file)
    done = clone.call(*words, TAKES="0.01")
    assert (done.returncode, done.stdout) == (0, "4 done\n"), done.stderr
    ends = re.findall(r"^\[(\d/\d)\] done", done.stderr, re.MULTILINE)
    assert ends == ["1/4", "2/4", "3/4", "4/4"]
    log = (clone.folder / "output/all/coop-base2new_train-digits-seed-1.txt").read_text()
    assert log.startswith("set up with 0 words\n") and "GPU 7\n" in log


@pytest.mark.parametrize("words", [["--cluster", "a/b.yaml"], ["--cluster=a/b.yaml"], []])
def test_a_path_of_settings_is_the_callers(words, clone):
    """Not one below the repository."""
    env = {} if words else {"CLUSTER": "a/b.yaml"}
    done = clone.call("scripts/all.sh", "coop", "digits", "1", "--executor", "debug", *words, **env)
    assert done.returncode == 2
    assert re.search(r"error: --cluster: no file /+a/b\.yaml$", done.stderr.strip())


def test_a_dry_run_says_what_would_be_missing(settings, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path / "no"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    words = ["coop", "digits", "1", "--executor", "slurm", "--cluster", settings]
    assert scripts.all.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "2 runs, 2 left" in printed.out
    warned = [line.removeprefix(FAILS) for line in printed.err.splitlines()]
    assert [line.split()[:2] for line in warned] == [
        ["DATA", "is"],
        ["jobs", "need"],
        ["there", "is"],
    ]
    assert scripts.all.main(words) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--executor", "slurm"], "EXECUTOR=slurm needs the settings of the jobs: --cluster FILE"),
        (["--executor", "slrum"], "no EXECUTOR 'slrum'; there are: local slurm debug; did you"),
        (["--executer", "slurm"], "no option --executer; did you mean --executor?"),
        (["--cluster", "FILE"], "EXECUTOR=local, this machine, has no use for the settings"),
        (["--retries", "-1"], "RETRIES must be a whole number from 0 on, not '-1'"),
        (["--executor", "slurm", "--cluster", "FILE"], "there is no srun here: EXECUTOR=slurm is"),
    ],
)
def test_wrong_options_get_one_line(words, message, settings, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    words = [settings if word == "FILE" else word for word in words]
    assert scripts.all.main(["coop", "digits", "1", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {message}")


def test_a_cluster_that_is_not_read_is_refused_as_the_option_is(settings, capsys, monkeypatch):
    monkeypatch.setenv("CLUSTER", settings)
    assert scripts.all.main(["coop", "digits", "1", "--dry-run"]) == 2
    assert "has no use for the settings of jobs in" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_job_that_is_ended_and_queued_again_by_submitit_itself(tmp_path, wait_for):
    """submitit's local executor sends the signal that SLURM sends, and starts the job again."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!{sys.executable}
import os, pathlib, signal, sys, time
if sys.argv[1] != "train.py":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
print("listening", flush=True)
calls = pathlib.Path({str(tmp_path)!r}, "calls")
calls.open("a").write("call\\n")
if len(calls.read_text().split()) == 1:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    calls.with_name("listening").touch()
    time.sleep(300)
"""
    )
    python.chmod(0o755)
    env = {"PYTHON": str(python), "OUTPUT": str(tmp_path / "output"), "PATH": os.environ["PATH"]}
    task = Task((("coop", "fewshot", "digits", "1", "1"),), trains=True)
    cluster = Cluster(signal_delay=20)
    (tmp_path / "output").mkdir()
    ((job, _),) = submit("local", cluster, [task], tmp_path / "output", env, 0)
    wait_for((tmp_path / "listening").exists)
    controller = job.job_id
    (process,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(process), signal.SIGUSR2)
    result = job.result()
    assert [(call, what) for call, what, _ in result["outcomes"]] == [(task.calls[0], "done")]
    assert (tmp_path / "calls").read_text() == "call\n" * 2
