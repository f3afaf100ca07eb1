from __future__ import annotations

import ast
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

from dassl.utils import Logger, hides_bars, is_quiet, print_detail, print_result, setup_logger
from dassl.utils import logger as logger_module

ROOT = Path(__file__).parents[2]


def run(code: str, *args: str, wait: bool = True) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.wait(timeout=60)
    return process


# Loading the module alone spares the child the import of torch.
LOGGER = """
    import importlib.util, sys, os, time
    spec = importlib.util.spec_from_file_location("logger", "dassl/utils/logger.py")
    logger = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(logger)
    logger.setup_logger(sys.argv[1])
"""


def test_a_process_ends_cleanly_and_console_and_file_agree(tmp_path):
    code = LOGGER + "    print('one')\n    print('two', flush=True)\n"
    process = run(code, str(tmp_path / "new" / "run"))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out == "one\ntwo\n"
    assert (tmp_path / "new" / "run" / "log.txt").read_text() == out


def test_a_killed_process_leaves_its_log(tmp_path):
    code = LOGGER + "    print('before')\n    os.write(2, b'ready\\n')\n    time.sleep(60)\n"
    process = run(code, str(tmp_path), wait=False)
    assert process.stderr.readline() == "ready\n"
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert (tmp_path / "log.txt").read_text() == "before\n"
    process.stdout.close()
    process.stderr.close()


def test_a_resumed_run_continues_the_same_file(tmp_path):
    for word in ("first", "second"):
        assert run(LOGGER + f"    print('{word}')\n", str(tmp_path)).wait() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["log.txt"]
    assert (tmp_path / "log.txt").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("name", ["my.log", "notes.txt"])
def test_a_file_name_is_used_as_it_is(tmp_path, name):
    setup_logger(str(tmp_path / name))
    print("line")
    assert (tmp_path / name).read_text() == "line\n"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (logger_module.QUIET, "result\n"),
        (logger_module.NORMAL, "line\nresult\n"),
        (logger_module.VERBOSE, "detail\nline\nresult\n"),
    ],
)
def test_a_console_shows_what_is_asked_for(tmp_path, capsys, level, shown):
    setup_logger(str(tmp_path), level)
    print_detail("detail")
    print("line")
    print_result("result")
    assert is_quiet() is (level == logger_module.QUIET)
    assert capsys.readouterr().out == shown
    assert (tmp_path / "log.txt").read_text() == "detail\nline\nresult\n"


def test_without_a_log_all_is_shown(capsys):
    print_detail("detail")
    print_result("result")
    assert not is_quiet()
    assert capsys.readouterr().out == "detail\nresult\n"


def test_any_text_reaches_the_file(tmp_path):
    setup_logger(str(tmp_path))
    print("图片 \udcff")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "图片 \\udcff\n"


def test_a_run_outlives_its_console(tmp_path):
    """As with ``| head``: the rest is in the file."""
    code = LOGGER + "    for i in range(10**5): print(i)\n    sys.stdout.flush()\n"
    process = run(code, str(tmp_path), wait=False)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read().count("output was closed; the log continues in") == 1
    assert (tmp_path / "log.txt").read_text().endswith("\n99999\n")
    process.stderr.close()


def test_a_log_that_cannot_be_written_does_not_end_the_run(capsys):
    logger = Logger("/dev/full")
    logger.write("one\n")
    logger.write("two\n")
    logger.flush()
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"
    assert err == "Note: /dev/full ends here: No space left on device\n"


def test_two_processes_do_not_write_one_log(tmp_path, monkeypatch):
    code = LOGGER + "    os.write(2, b'ready\\n')\n    time.sleep(60)\n"
    process = run(code, str(tmp_path), wait=False)
    assert process.stderr.readline() == "ready\n"
    monkeypatch.setattr(logger_module, "LOCK_PATIENCE", 0.3)
    before = sys.stdout
    with pytest.raises(BlockingIOError, match=r"another process is writing .*log\.txt: wait"):
        setup_logger(str(tmp_path))
    assert sys.stdout is before
    monkeypatch.setattr(logger_module, "LOCK_PATIENCE", 10)
    threading.Timer(0.5, process.kill).start()
    setup_logger(str(tmp_path))
    print("mine")
    process.communicate()
    assert (tmp_path / "log.txt").read_text() == "mine\n"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_log_that_has_no_place(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*log\.txt \(.*: choose another folder"):
        setup_logger(str(tmp_path / place))


def test_no_output_changes_nothing():
    before = sys.stdout
    setup_logger(None)
    assert sys.stdout is before


def test_a_second_run_in_one_process_writes_to_its_own_log(tmp_path):
    setup_logger(str(tmp_path / "a"))
    print("a")
    setup_logger(str(tmp_path / "b"))
    print("b")
    assert (tmp_path / "a" / "log.txt").read_text() == "a\n"
    assert (tmp_path / "b" / "log.txt").read_text() == "b\n"


def test_closing_leaves_the_console_open(tmp_path, capsys):
    logger = Logger(str(tmp_path / "log.txt"))
    logger.write("one\n")
    logger.close()
    logger.close()
    logger.write("two\n")
    logger.flush()
    assert not sys.stdout.closed
    assert capsys.readouterr().out == "one\ntwo\n"
    assert (tmp_path / "log.txt").read_text() == "one\n"


def test_it_answers_what_callers_ask_of_a_console(tmp_path):
    with Logger(str(tmp_path / "log.txt")) as logger:
        assert logger.encoding == sys.stdout.encoding
        assert logger.isatty() == sys.stdout.isatty()


def test_bars_are_for_terminals_only(capsys, monkeypatch):
    """In a log every refresh of a bar would be a line."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert list(tqdm([1, 2], disable=hides_bars())) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(tqdm([1, 2], disable=hides_bars())) == [1, 2]
    assert "2/2" in sys.stderr.getvalue()


def test_every_bar_says_when_it_is_hidden():
    calls = []
    listed = subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True)
    for name in listed.splitlines():
        text = (ROOT / name).read_text("utf-8")
        if "tqdm(" not in text or name.startswith("tests/"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tqdm":
                hidden = any(word.arg == "disable" for word in node.keywords)
                calls.append((name, node.lineno, hidden))
    # the board of sweeps asks the terminal itself, and prints a line a run elsewhere
    shown = [call for call in calls if not call[2] and call[0] != "scripts/sweep/board.py"]
    assert len(calls) > 5 and shown == []
