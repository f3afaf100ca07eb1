"""One line for an error, for Ctrl-C and for a closed pipe; any text on any console."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper

from dassl.utils import ImageError
from support.command_line import run, run_command

ROOT = Path(__file__).parents[2]


def refuse() -> None:
    raise ValueError(
        "OPTIM.LR is -1: use a number\nabove 0",
    )


def load_in_a_worker(work: Callable[[], object]) -> None:
    """What a loader does with an error of its worker process."""
    try:
        work()
    except Exception:
        ExceptionWrapper(where="in DataLoader worker process 0").reraise()


def refuse_image() -> None:
    raise ImageError("bad.png is empty")


@pytest.mark.parametrize(
    ("action", "status", "line"),
    [
        (refuse, 2, "error: OPTIM.LR is -1: use a number above 0"),
        (lambda: open("/no/such/file"), 2, "No such file or directory: '/no/such/file'"),
        (lambda: importlib.import_module("no_such"), 2, "No module named 'no_such': install req"),
        (lambda: load_in_a_worker(refuse_image), 2, "error: bad.png is empty"),
        (lambda: {}["labels"], 1, "unexpected KeyError: 'labels' (tests/support/test_command_"),
        (lambda: bytearray(1 << 62), 1, "error: memory ran out (tests/support/"),
        (lambda: torch.empty(1 << 58), 1, "error: memory ran out (tests/support/"),
        (lambda: [][3], 1, "unexpected IndexError: list index out of range (tests/support/"),
        (lambda: int("x"), 1, "unexpected ValueError: invalid literal for int() with base 10: 'x'"),
        (lambda: json.loads("<html>"), 1, "unexpected JSONDecodeError: Expecting value"),
        (
            lambda: load_in_a_worker(lambda: {}["impath"]),
            1,
            "unexpected KeyError: 'impath' (tests/",
        ),
    ],
)
def test_an_error_is_one_line(action, status, line, capsys):
    assert run(action) == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1
    if status == 1:
        assert "--traceback" in err
    with pytest.raises(Exception):  # noqa: B017
        run(action, traceback=True)


def test_escape_codes_are_left_out(capsys):
    def paint() -> None:
        raise RuntimeError("\x1b[1mbold\x1b[0m")

    run(paint)
    assert capsys.readouterr().err == "error: bold\n"


def test_ctrl_c_is_one_line(capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run(interrupt, interrupted=lambda: "interrupted; nothing is saved") == 130
    assert capsys.readouterr().err == "\ninterrupted; nothing is saved\n"


def test_a_reader_that_has_seen_enough():
    code = (
        "import sys\nfrom support.command_line import run\n"
        "def act():\n    for i in range(10**5): print(i)\n"
        "sys.exit(run(act))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


# Every command, with the function that does its work and words that its parser takes.
COMMANDS = {
    "train": ("build_runs", "--no-train"),
    "predict": ("predict", "x.png"),
    "serve": ("serve",),
    "parse_test_res": ("parse_output",),
    "datasets.prepare": ("run",),
    "clip.convert": ("convert", "a", "b"),
    "pretrain.__main__": ("train",),
    "pretrain.hard_images": ("act",),
    "tools.attention": ("run", "run", "x.png"),
    "tools.clean": ("clean", "output"),
    "tools.config_reference": ("print_reference",),
    "tools.what_works": ("act",),
    "tools.export": ("export", "run"),
    "tools.factors": ("run", "run"),
    "tools.inspect_run": ("run", "run"),
    "tools.nearest_words": ("run", "run"),
    "tools.to_upstream": ("convert", "run", "out"),
    "tools.tsne": ("run", "run"),
    **{
        f"benchmarks.{name}": ("act",)
        for name in (
            *(
                "config_reads",
                "data_pipeline",
                "feature_pools",
                "gpu",
                "kills",
                "memory_estimate",
                "methods",
                "mmlop_stability",
            ),
            *("parameters", "repeat", "several_seeds", "speed", "sweep_kills", "teacher_cache"),
            *("rank_texts", "whole_run", "rates", "contact_sheets", "drift"),
        )
    },
    "benchmarks.serving": ("act", "run"),
}


def call(command: str, *options: str) -> int:
    module, (work, *words) = importlib.import_module(command), COMMANDS[command]
    words += options
    if hasattr(module, "main"):
        return module.main(words)
    return run_command(module.build_parser(), getattr(module, work), words)


def test_every_command_is_tested_here():
    """Those of ``scripts/``, which the shell calls, and of bundles have tests of their own."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py")]
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")
    ]
    others = ("scripts.", "tests.", "deploy.standalone.")
    assert {name for name in names if not name.startswith(others)} == set(COMMANDS)


@pytest.fixture(params=COMMANDS)
def command(request, monkeypatch):
    """A command whose work is to look up a key that is not there, after printing any text."""

    def work(*_: object) -> None:
        print("图片 \udcff é")
        return {}["labels"]

    monkeypatch.setattr(importlib.import_module(request.param), COMMANDS[request.param][0], work)
    return request.param


def test_no_command_ends_with_a_traceback(command, capsys):
    assert call(command) == 1
    assert "error: unexpected KeyError: 'labels' (tests/" in capsys.readouterr().err
    with pytest.raises(KeyError):
        call(command, "--traceback")


def test_every_command_prints_any_text(command, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert call(command) == 1
    assert console.buffer.getvalue() == "\\u56fe\\u7247 \\udcff é\n".encode("cp1252")
