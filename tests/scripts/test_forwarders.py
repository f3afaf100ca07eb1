"""The shell scripts: identical forwarders that any shell may start, in any environment."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from protocols import scripts
from scripts.methods import method_names, read_method
from scripts.run import FAILS
from scripts.upstream import SCRIPTS as UPSTREAM

ROOT = Path(__file__).parents[2]
SHELL_FILES = sorted(ROOT.glob("scripts/**/*.sh"))
#: in folders of scripts, but those that only one method has
FORWARDERS = {path for path in ROOT.glob("scripts/*/*.sh") if path.name != "ablation.sh"}
OF_UPSTREAM = {path for path in FORWARDERS if "/../upstream.sh" in path.read_text()}
OURS = FORWARDERS - OF_UPSTREAM


def test_every_method_has_every_protocol():
    wanted = {
        ROOT / "scripts" / name / f"{script}.sh"
        for name in method_names()
        for script in read_method(name).scripts
        if scripts()[script].does
    }
    # a method without a protocol says so, in whatever way it is asked
    known = {
        ROOT / "scripts" / name / f"{script}.sh" for name in method_names() for script in scripts()
    }
    missing, other = ([str(p.relative_to(ROOT)) for p in x] for x in (wanted - OURS, OURS - known))
    assert not missing, f"copy scripts/lorvp/fewshot.sh to {' '.join(sorted(missing))}"
    assert not other, f"of no method or protocol: {' '.join(sorted(other))}"


def test_every_script_of_upstream_is_known():
    for path in OF_UPSTREAM:
        assert re.sub("_(maple|ivlp|lp|vpt)(?=_|$)", "", path.stem) in UPSTREAM


def test_forwarders_are_identical():
    for alike in (OURS, OF_UPSTREAM):
        assert len({path.read_bytes() for path in alike}) == 1
        assert all(os.access(path, os.X_OK) for path in alike)


def test_one_place_calls_train():
    shells = [path for path in SHELL_FILES if "train.py" in path.read_text()]
    files = [p.name for p in ROOT.glob("scripts/*.py") if '"train.py"' in p.read_text()]
    assert (shells, files) == ([], ["planning.py"])


@pytest.mark.parametrize(
    ("shell", "inside", "line", "output"),
    [
        (["sh"], False, "mmlop/fewshot dtd 4 1", "dtd/MMLoP/vit_b16_fewshot_4shots/seed1"),
        (["bash"], True, "mmlop/fewshot dtd 4 1", "dtd/MMLoP/vit_b16_fewshot_4shots/seed1"),
        ([], True, "promptsrc/few_shot digits 4 1", "digits/PromptSRC/tiny_4shots/seed1"),
        (["sh"], True, "maple/xd_train_maple digits 1", "digits/MaPLe/tiny_16shots/seed1"),
        ([], False, "mmlop/ablation digits 1 logits", "digits/shots_16/MMLoP/tiny"),
    ],
)
def test_any_shell_may_start_a_forwarder(shell, inside, line, output, tmp_path):
    name, *words = line.split()
    path = ROOT / "scripts" / f"{name}.sh"
    script, cwd = (f"./{path.name}", path.parent) if inside else (str(path), tmp_path)
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PYTHON": sys.executable, "DATA": "d"}
    done = subprocess.run(
        [*shell, script, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"{FAILS}DATA is {cwd / 'd'}, which is no folder"]
    command = shlex.split(done.stdout.splitlines()[0])
    assert command[:2] == [sys.executable, "train.py"]
    assert output in command[command.index("--output-dir") + 1]
    assert command[command.index("--root") + 1] == str(cwd / "d")


def test_published_weights_lie_where_the_caller_is(tmp_path):
    script = ROOT / "scripts/maple/reproduce_maple_xd.sh"
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PYTHON": sys.executable}
    command = ["bash", script, "dtd", "2", "weights"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert f"--model-dir {tmp_path}/weights/seed2 " in done.stdout


def test_help_needs_no_environment(clone):
    (clone.folder / ".venv").rename(clone.folder / "elsewhere")
    python = clone.folder / "programs" / "python3"  # has the standard library only
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    for name, words in {
        "run": "scripts/<method>/base2new_train.sh DATASET SEED",
        "all": "PROTOCOL  base2new: base-to-new (default)\n",
        "quickstart": "JOBS, how many runs at a time",
        "mmlop/xd_test": "usage: scripts/mmlop/xd_test.sh DATASET SEED [MAX_EPOCH]",
        "mmlop/ablation": "ablation.sh DATASET SEED [TABLE ...]",
        "maple/reproduce_maple": "reproduce*.sh DATASET SEED WEIGHTSPATH",
    }.items():
        for option in ("--help", "-h"):
            done = clone.call(f"scripts/{name}.sh", option, PATH=path)
            assert (done.returncode, done.stderr) == (0, "")
            assert words in done.stdout and "From the environment" in done.stdout
            assert "#" not in done.stdout
    assert not (clone.folder / ".venv").exists()


def test_errors_are_one_line(clone):
    done = clone.call("scripts/run.sh")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: usage: run.sh METHOD PROTOCOL ARGUMENTS\n"
    done = clone.call("scripts/mmlop/ablation.sh", "digits", "1", "ranks")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: p.name)
def test_syntax(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shipped_scripts_name_no_package_index():
    for path in [*SHELL_FILES, *ROOT.glob("requirements*.txt")]:
        text = path.read_text()
        assert "index-url" not in text
        assert "://" not in text
