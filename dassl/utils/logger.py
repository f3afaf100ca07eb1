"""Copy of standard output in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

__all__ = [
    "LabelledStream",
    "Logger",
    "hides_bars",
    "is_quiet",
    "print_detail",
    "print_result",
    "setup_logger",
]

#: seconds to wait for another process to let go of a log file
LOCK_PATIENCE = 10.0

#: what a console shows: results; what a person needs to follow a run; all that the log file holds
QUIET, NORMAL, VERBOSE = range(3)


class Logger:
    """Text stream that writes to the console and to a file.

    Every full line reaches the file at once, so a killed run leaves its log. Closing the logger
    closes the file only; the console belongs to the process. A run outlives both: when
    the console was closed, or the file cannot be written, text goes to the other one alone.

    Args:
        fpath: log file, opened for appending; None writes to the console only.
        console: stream to forward to; None means the present ``sys.stdout``.
        level: what the console shows: QUIET, NORMAL or VERBOSE; the file gets everything.
    """

    def __init__(
        self, fpath: str | None = None, console: TextIO | None = None, level: int = VERBOSE
    ) -> None:
        self.console = sys.stdout if console is None else console
        self.level = level
        self.file: TextIO | None = None
        if fpath is not None:
            os.makedirs(os.path.dirname(os.path.abspath(fpath)), exist_ok=True)
            # file names that are no text become escapes
            self.file = open(fpath, "a", buffering=1, encoding="utf-8", errors="backslashreplace")

    def write(self, msg: str) -> int:
        self.write_at(NORMAL, msg)
        return len(msg)

    def write_at(self, level: int, msg: str) -> None:
        """Write text that the console shows from a level on."""
        if level <= self.level:
            with self._surviving_console():
                self.console.write(msg)
        if self.file is not None:
            with self._surviving_file():
                self.file.write(msg)

    def flush(self) -> None:
        with self._surviving_console():
            self.console.flush()
        if self.file is not None:
            with self._surviving_file():
                self.file.flush()
                os.fsync(self.file.fileno())

    @contextmanager
    def _surviving_console(self) -> Iterator[None]:
        """Go on without a console that was closed, as in ``... | head``, if there is a file."""
        try:
            yield
        except BrokenPipeError:
            if self.file is None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.console.fileno())
            print(
                f"Note: standard output was closed; the log continues in {self.file.name}",
                file=sys.stderr,
            )

    @contextmanager
    def _surviving_file(self) -> Iterator[None]:
        """Go on without a file that cannot be written: a run is worth more than its log."""
        try:
            yield
        except OSError as error:
            file, self.file = self.file, None
            if file is None:
                raise
            print(f"Note: {file.name} ends here: {error.strerror}", file=sys.stderr)
            with suppress(OSError):  # closing writes what is left
                file.close()

    def close(self) -> None:
        """Close the log file; later writes go to the console only."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        # isatty, encoding, fileno, buffer ...: what callers ask of a console.
        if name in ("console", "file", "level"):
            raise AttributeError(name)
        return getattr(self.console, name)


class LabelledStream:
    """Text stream that starts every line with a label.

    Args:
        console: stream to forward to.
        label: text in front of every line.
    """

    def __init__(self, console: TextIO, label: str) -> None:
        self.console, self.label, self.at_start = console, label, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.console.write(f"{self.label}{line}" if self.at_start else line)
            self.at_start = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)


def print_detail(text: str) -> None:
    """Print a detail, which a console shows at VERBOSE alone."""
    _print_at(VERBOSE, text)


def print_result(text: str) -> None:
    """Print a result, which a console shows at every level."""
    _print_at(QUIET, text)


def _print_at(level: int, text: str) -> None:
    if isinstance(sys.stdout, Logger):
        sys.stdout.write_at(level, f"{text}\n")
    else:
        print(text)


def is_quiet() -> bool:
    """Return whether the console is to show results only, and so no progress."""
    return isinstance(sys.stdout, Logger) and sys.stdout.level == QUIET


def hides_bars() -> bool | None:
    """Return tqdm's ``disable``: no progress bar where the console is quiet or no terminal.

    Of a bar in a file, every refresh would be a line.
    """
    return is_quiet() or None


def setup_logger(output: str | None = None, level: int = VERBOSE) -> None:
    """Copy all further standard output to a log file.

    An existing file is continued, so that the log of a resumed run is one file whose last result
    is the newest (upstream starts ``log.txt-<date>``, which parsers do not find). A second call
    moves the copy to the new file.

    Args:
        output: path ending in ``.txt`` or ``.log``, or a folder that gets ``log.txt``; None does
            nothing.
        level: what the console shows: QUIET, NORMAL or VERBOSE.

    Raises:
        OSError: the file cannot be written, or another process is writing it.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    console = sys.stdout
    if isinstance(console, Logger):
        console.close()
        console = console.console
    try:
        logger = Logger(fpath, console, level)
    except OSError as error:
        raise OSError(
            f"cannot write {fpath} ({error.strerror}): choose another folder with --output-dir "
            "(OUTPUT_DIR)"
        ) from error
    if logger.file is not None and not _locked(logger.file):
        logger.close()
        raise BlockingIOError(
            f"another process is writing {fpath}: wait for it, or choose another folder with "
            "--output-dir (OUTPUT_DIR)"
        )
    sys.stdout = logger


def _locked(file: TextIO) -> bool:
    """Lock a file until it is closed, where the system can; return False if it is taken."""
    if fcntl is None:
        return True
    # the workers of a killed run have its files open until they notice, some seconds later
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
            continue
        except OSError:
            pass  # a file system without locks
        return True
