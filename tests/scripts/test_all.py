"""all.sh: what it runs, what it skips, and what it says of runs that fail."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocols import VARIANTS_OF
from scripts.sweep.board import progress
from scripts.sweep.plan import plan

ROOT = Path(__file__).parents[2]
ALL = runpy.run_path(str(ROOT / "scripts" / "all.py"))


def planned(*words: str, **env: str) -> list[tuple[str, ...]]:
    """The calls of run.sh that a command line asks for, in order."""
    args = ALL["build_parser"]().parse_args(words)
    return [call for chain in plan(args, env) for call in chain.calls]


def test_base_to_new_by_default():
    calls = planned("mmlop,coop", "dtd eurosat", "1,2", "OPTIM.LR", "0.1")
    pairs = ("OPTIM.LR", "0.1")
    assert calls == [
        (method, f"base2new_{part}", dataset, seed, *pairs)
        for method in ("mmlop", "coop")
        for dataset in ("dtd", "eurosat")
        for seed in ("1", "2")
        for part in ("train", "test")
    ]


def test_methods_by_other_names():
    methods = [call[0] for call in planned("MMLoP promptSRC zeroshotclip IVLP", "dtd", "1")]
    assert methods[::2] == ["mmlop", "promptsrc", "zsclip", "ivlp"]


def test_base_and_new_together_only_when_asked_for():
    assert planned("coop", "dtd", "1", PROTOCOL="base2new_all") == [
        ("coop", f"base2new_{part}", "dtd", "1") for part in ("train", "test_all")
    ]


def test_few_shot():
    calls = planned("coop", "dtd", PROTOCOL="fewshot")
    assert calls == [
        ("coop", "fewshot", "dtd", shots, seed)
        for shots in ("1", "2", "4", "8", "16")
        for seed in ("1", "2", "3")
    ]
    assert planned("coop", "dtd", "3", PROTOCOL="fewshot", SHOTS="all,2") == [
        ("coop", "fewshot", "dtd", shots, "3") for shots in ("all", "2")
    ]
    assert planned("coop", "dtd", "3", PROTOCOL="fewshot", SHOTS="4") == [
        ("coop", "fewshot", "dtd", "4", "3")
    ]


def test_transfer_trains_once_for_all_data_sets():
    calls = planned("coop", "dtd digits", "2", PROTOCOL="xd", SOURCE="shapes")
    assert calls == [
        ("coop", "xd_train", "shapes", "2"),
        ("coop", "xd_test", "dtd", "2"),
        ("coop", "xd_test", "digits", "2"),
    ]
    for source, variants in VARIANTS_OF.items():
        first, *rest = planned("coop", "", "2", PROTOCOL="dg", SOURCE=source)
        assert first == ("coop", "xd_train", source, "2")
        assert rest == [("coop", "dg_test", variant, "2") for variant in variants]
        # a variant says what its source is
        assert planned("coop", variants[1], "2", PROTOCOL="dg") == [first, rest[1]]


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (("coop", "symbols symbols_r"), {}, "symbols_r is for tests only .*: train on symbols$"),
        (("zsclip coop", "imagenetv2"), {"PROTOCOL": "fewshot"}, "imagenetv2 is for tests only"),
        (("coop", "digits"), {"PROTOCOL": "xd", "SOURCE": "symbols_a"}, "symbols_a is for tests"),
        (("zsclip", "symbols_r"), {"PROTOCOL": "fewshot"}, ""),
        (("coop", "imagenet_a"), {"PROTOCOL": "xd"}, ""),
    ],
)
def test_no_method_is_trained_on_a_variant(words, env, message):
    if not message:
        assert planned(*words, **env)
        return
    with pytest.raises(ValueError, match=message):
        planned(*words, **env)


def test_data_sets_by_default():
    """Those of the benchmark where there is data, else those of the repository."""

    def datasets(**env: str) -> list[str]:
        return list(dict.fromkeys(call[2] for call in planned("coop", **env)))

    assert datasets() == ["digits", "letters"]
    assert len(datasets(DATA="/d")) == 11
    assert datasets(DATA="/d", PROTOCOL="fewshot") == datasets(DATA="/d")
    assert datasets(PROTOCOL="xd") == ["symbols", "digits", "letters", "shapes"]
    assert datasets(PROTOCOL="dg") == ["symbols", *VARIANTS_OF["symbols"]]
    assert datasets(DATA="/d", PROTOCOL="dg") == ["imagenet", *VARIANTS_OF["imagenet"]]
    assert datasets(DATA="/d", PROTOCOL="xd") == datasets(DATA="/d")
    assert datasets(DATA="/d", PROTOCOL="xd")[0] == "imagenet"


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (["cop"], {}, "no method 'cop'; there are: .*cocoop coop "),
        (["MMLoPs"], {}, "no method 'MMLoPs'; .*; did you mean mmlop\\?"),
        (["coop", "digit"], {}, "no data set 'digit'; there are: .*; did you mean digits\\?"),
        (["coop", "digits"], {"DATA": "/nowhere"}, "DATA is /nowhere, which is no folder"),
        (["coop", "digits", "one"], {}, "SEEDS must be whole numbers, not 'one'"),
        (
            ["coop", "OPTIM.MAX_EPOCH", "2"],
            {},
            "OPTIM.MAX_EPOCH is a config key, in the place of DATASETS: KEY VALUE pairs come .*: "
            "all.sh coop '' '' OPTIM.MAX_EPOCH 2$",
        ),
        (
            ["coop", "digits", "OPTIM.LR", "2", "SEED", "3"],
            {},
            ".* in the place of SEEDS: .*: all.sh coop digits '' OPTIM.LR 2 SEED 3$",
        ),
        (["MODEL.BACKBONE.NAME", "tiny"], {}, ".* in the place of METHOD: "),
        (["coop"], {"PROTOCOL": "b2n"}, "no PROTOCOL 'b2n'; there are: base2new base2new_all dg "),
        (["coop"], {"PROTOCOL": "xd", "SOURCE": "digit"}, "no SOURCE 'digit'; there are: "),
        (["coop", "dtd"], {"PROTOCOL": "dg"}, "no data set 'dtd'; there are: imagenet"),
        (["coop"], {"PROTOCOL": "fewshot", "SHOTS": "few"}, "SHOTS must be whole numbers"),
        (["coop"], {"TOGETHER": "yes"}, "no TOGETHER 'yes'; there are: 0 1"),
        (["coop"], {"JOBS": "0"}, "JOBS must be a whole number from 1 on, not '0'"),
    ],
)
def test_bad_arguments_get_one_line(words, env, message, monkeypatch, capsys):
    for name in ("PROTOCOL", "DATA", "SHOTS", "SOURCE", "JOBS", "TOGETHER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert ALL["main"](words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert re.match(f"error: {message}", line)


@pytest.mark.parametrize("protocol", ["base2new", "xd", "dg"])
def test_dry_run_prints_the_commands_of_the_scripts(protocol, clone):
    env = {"PROTOCOL": protocol, "DRY_RUN": "1"}
    done = clone.call("scripts/all.sh", "coop", "", "1", **env)
    assert done.returncode == 0, done.stderr
    commands = []
    for method, script, *words in planned("coop", "", "1", PROTOCOL=protocol):
        source = {} if protocol == "base2new" else {"SOURCE": "symbols"}
        one = clone.call(f"scripts/{method}/{script}.sh", *words, DRY_RUN="1", **source)
        commands.append(shlex.split(one.stdout))
    assert [shlex.split(line) for line in done.stdout.splitlines()] == commands


def test_dry_run_of_what_cannot_run(clone):
    done = clone.call("scripts/all.sh", "coop", "digits", "1", DRY_RUN="1", CFG="huge")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no file configs/trainers/CoOp/huge.yaml; there are: ")


def test_what_is_finished_is_skipped(clone):
    words = ("coop mmlop", "digits", "1 2")
    done = clone.call("scripts/all.sh", *words, JOBS="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 done\n"
    assert len(clone.runs()) == 8
    # of calls that take no time the bar need not show each
    assert "running coop base2new_train digits seed 1" in done.stderr
    more = clone.call("scripts/all.sh", "coop mmlop", "digits", "1 2 3")
    assert more.stdout == "4 done, 8 finished before\n"
    assert len(clone.runs()) == 12


def test_seeds_together(clone):
    assert planned("coop", "digits", "1 2", TOGETHER="1", PROTOCOL="fewshot", SHOTS="4") == [
        ("coop", "fewshot", "digits", "4", "1,2")
    ]
    words = ("coop", "digits")
    assert clone.call("scripts/all.sh", *words, "2").stdout == "2 done\n"
    more = clone.call("scripts/all.sh", *words, TOGETHER="1")
    assert more.stdout == "2 done\n", "of three seeds one was finished"
    trained = [line for line in clone.runs() if "--eval-only" not in line]
    assert ["--seed 2 " in trained[0], "--seeds 1,3 " in trained[1]] == [True, True]
    assert len(clone.runs()) == 2 + 3, "a training of two seeds, and two tests"
    again = clone.call("scripts/all.sh", *words, TOGETHER="1")
    assert again.stdout == "2 finished before\n"


def test_the_other_runs_go_on_after_a_failure(clone):
    words = ("coop", "digits shapes", "1")
    failing = "train_base/digits/shots_16/CoOp/tiny/seed1"
    done = clone.call("scripts/all.sh", *words, BREAK=failing)
    assert done.returncode == 1
    assert done.stdout == "2 done, 1 failed, 1 not run\n"
    log = clone.folder / "output/all/coop-base2new_train-digits-seed-1.txt"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == (
        f"error: coop base2new_train digits seed 1 failed: the reason (status 1, log {log})"
    )
    assert log.read_text() == "the reason\n"
    again = clone.call("scripts/all.sh", *words)
    assert (again.returncode, again.stdout) == (0, "2 done, 2 finished before\n")


def test_one_target_that_fails_leaves_the_others(clone):
    env = {"PROTOCOL": "xd", "DATA": str(clone.folder), "BREAK": "/caltech101/"}
    done = clone.call("scripts/all.sh", "coop", "", "1", **env)
    assert done.returncode == 1
    assert done.stdout == "10 done, 1 failed\n"


def test_what_a_run_has_come_to(tmp_path):
    log = tmp_path / "log.txt"
    assert progress(log) == ""
    log.write_text("** Arguments **\n")
    assert progress(log) == ""
    log.write_text("".join(f"[seed 1] epoch [{n}/20] batch [1/1]\n" for n in range(1, 18)))
    assert progress(log) == " (epoch 17/20)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_stops_the_runs(number, clone):
    started = clone.folder / "started"
    (clone.folder / ".venv/bin/python").write_text(
        f"#!/bin/sh\n"
        f'[ "$1" = train.py ] || exec {sys.executable} "$@"\n'
        f"sleep 300 &\n"
        f"echo $! >{started}.new && mv {started}.new {started}\n"
        f"wait\n"
    )
    sweep = subprocess.Popen(
        ["bash", clone.folder / "scripts/all.sh", "coop", "digits", "1"],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 30
    while not started.exists():
        assert time.time() < deadline and sweep.poll() is None
        time.sleep(0.02)
    sweep.send_signal(number)
    out, err = sweep.communicate(timeout=30)
    assert (sweep.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "stopped (no run had ended): finished runs and the last checkpoints of the others are kept "
        f"below {clone.folder}/output; the same command continues from there"
    )
    run = Path("/proc", started.read_text().strip(), "cmdline")
    while run.exists() and b"sleep" in run.read_bytes():
        assert time.time() < deadline
        time.sleep(0.02)


def test_help_answers_at_once():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "all.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "PROTOCOL" in done.stdout
    assert "torch" not in (ROOT / "scripts" / "all.py").read_text()
