"""What all commands share: one line for an error and Ctrl-C, exit statuses, common options."""

from __future__ import annotations

import _thread
import argparse
import errno
import linecache
import os
import re
import select
import signal
import sys
import threading
import traceback as tracebacks
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .ending import REQUEST, ToldToEnd

ROOT = Path(__file__).resolve().parent.parent

#: exit statuses; UNFINISHED (sysexits' EX_TEMPFAIL) is of a command to be run again
WRONG_INPUT, UNEXPECTED, INTERRUPTED, CLOSED_PIPE, UNFINISHED = 2, 1, 130, 141, 75

# As terminals take them for colours and as PyTorch puts them into its texts.
_ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# characters of the longest error that is shown whole
_LONGEST_LINE = 1500
# What a loader's worker process hands over in the place of an error of its own.
_FOREIGN_TRACEBACK = "Traceback (most recent call last)"
_FOREIGN_FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)')
_FULL_DISK = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}


class Unfinished(Exception):
    """What could not be finished, and will be by the same command once its cause is mended."""


def print_any_text() -> None:
    r"""Let standard output and error take every character, as ``\u56fe`` where they cannot show it.

    A console of Windows, a pipe there or the locale C knows a few hundred characters, and file
    names need not be text at all.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def describe(error: BaseException) -> str:
    """Return an exception's message on one line, without escape codes."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: install requirements.txt (bash scripts/setup.sh does) and use its python"
    # str() of a KeyError quotes its message.
    quoted = isinstance(error, KeyError) and error.args and _is_sentence(error.args[0])
    text = str(error.args[0]) if quoted else str(error)
    if _FOREIGN_TRACEBACK in text:
        text = text.strip().splitlines()[-1]
    line = " ".join(_ESCAPE_CODES.sub("", text).split()) or type(error).__name__
    return _shortened(printable(line))


def printable(text: str) -> str:
    """Return a text with what is no visible character escaped, as in ``repr``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _shortened(line: str) -> str:
    """Cut what is too long out of the middle of a line: values from files may have any length."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"


def _is_sentence(key: object) -> bool:
    """Return whether a KeyError holds a message, not the key that a look-up failed for."""
    return isinstance(key, str) and " " in key


def _is_ours(file: str) -> bool:
    path = Path(file).resolve()
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def _is_meant(error: BaseException) -> bool:
    """Return whether an exception is for the user to read: raised by code here or the system."""
    if isinstance(error, KeyError) and not _is_sentence(next(iter(error.args), None)):
        return False
    if isinstance(error, OSError | ModuleNotFoundError):
        return True
    own_class = getattr(sys.modules.get(type(error).__module__), "__file__", None)
    if own_class is not None and _is_ours(own_class):
        return True
    *_, (frame, line) = tracebacks.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return _is_ours(file) and linecache.getline(file, line).split()[:1] == ["raise"]


def _place(error: BaseException) -> str:
    """Say where an exception arose: the last place in the toolbox on the way, if there is one."""
    frames = [
        (frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in tracebacks.walk_tb(error.__traceback__)
    ]
    if _FOREIGN_TRACEBACK in str(error):
        frames += _FOREIGN_FRAME.findall(str(error))
    file, line, name = ([f for f in frames if _is_ours(f[0])] or frames)[-1]
    shown = Path(file).resolve().relative_to(ROOT) if _is_ours(file) else file
    return f"{shown}, line {line}, in {name}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_unfinished(error: BaseException) -> bool:
    return isinstance(error, Unfinished) or any(
        isinstance(cause, OSError) and cause.errno in _FULL_DISK for cause in _causes(error)
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: Python's, or the CPU's or a GPU's as PyTorch says it."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def report(error: BaseException) -> int:
    """Print the one line that an error gets.

    Returns:
        Exit status: 75 for a full disk and whatever else is :class:`Unfinished`, 2 for what the
        user can mend, 1 where memory ran out, and for what nobody foresaw, which is named with the
        place where it arose.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    if _is_out_of_memory(error):
        what = f": {text}" if (text := describe(error)) != type(error).__name__ else ""
        print(
            f"error: memory ran out ({_place(error)}){what}; end other programs, or use less: a "
            "smaller DATALOADER.TRAIN_X.BATCH_SIZE or TEST.BATCH_SIZE, MODEL.MEMORY_GB, a smaller "
            "backbone; --traceback shows how it came about",
            file=sys.stderr,
        )
        return UNEXPECTED
    if _is_unfinished(error):
        print(f"error: {describe(error)}", file=sys.stderr)
        return UNFINISHED
    if _is_meant(error):
        print(f"error: {describe(error)}", file=sys.stderr)
        return WRONG_INPUT
    what = describe(error)
    kind = type(error).__name__
    print(
        f"error: unexpected {what if what.startswith(kind) else f'{kind}: {what}'} "
        f"({_place(error)}); --traceback shows how it came about",
        file=sys.stderr,
    )
    return UNEXPECTED


def positive(text: str) -> int:
    """Read a whole number from 1 on, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def output_file(text: str) -> Path:
    """Read the path of a file to write, as the type of an argument; refuse that of a folder."""
    if text.endswith(("/", os.sep)) or os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file in it")
    return Path(text)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add the option that every command has, ``--traceback``."""
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")


def run_command(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line and do the work of the command.

    Args:
        parser: of the command line, with the option of :func:`add_traceback`.
        action: does the work, as for :func:`run`.
        argv: words of the command line; those of the process when not given.

    Returns:
        Exit status, that of :func:`run`.
    """
    args = parser.parse_args(argv)
    return run(lambda: action(args), args.traceback)


def run(
    action: Callable[[], int | None],
    traceback: bool = False,
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> int:
    """Do the work of a command.

    Args:
        action: does it; what it returns is the exit status, None stands for 0.
        traceback: let exceptions through, to show where they arose.
        interrupted: the line that Ctrl-C and other signals end with.

    Returns:
        Exit status: that of ``action``, see :func:`report` for errors, 130 after Ctrl-C, 75 where
        ``action`` was told to end by another signal, 141 when whoever read standard output has
        closed it (as in ``... | head``).
    """
    print_any_text()
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    thread_hook, threading.excepthook = threading.excepthook, _drop_what_is_kept
    try:
        status = action() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        if traceback:
            raise
        print(f"\n{interrupted()}", file=sys.stderr)
        return INTERRUPTED
    except ToldToEnd as told:
        print(f"{told}: {interrupted()}", file=sys.stderr)
        return UNFINISHED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return CLOSED_PIPE
        if traceback:
            raise
        return report(error)
    finally:
        sys.unraisablehook, threading.excepthook = hook, thread_hook


def _drop_what_is_kept(failed: threading.ExceptHookArgs) -> None:
    """Print no error that a thread keeps for others, who raise it: TensorBoard's writer does."""
    if getattr(failed.thread, "exception", None) is not failed.exc_value:
        threading.__excepthook__(failed)


def _interrupt_again(unraisable: Any) -> None:
    """Pass signals on where Python drops exceptions: in ``__del__``, where loaders end workers."""
    if unraisable.exc_type in (KeyboardInterrupt, ToldToEnd):
        number = getattr(unraisable.exc_value, "number", signal.SIGINT)
        REQUEST.clear()
        threading.Timer(0.05, _thread.interrupt_main, [number]).start()
    else:
        sys.__unraisablehook__(unraisable)


def _output_is_closed() -> bool:
    """Return whether standard output leads nowhere; if so, drop silently what is left for it."""
    if hasattr(select, "poll"):  # elsewhere a broken pipe is taken for that of standard output
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not poll.poll(0):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
