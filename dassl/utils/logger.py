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
    fcntl = None

__all__ = ["Logger", "setup_logger"]

#: seconds to wait for another process to let go of a log file
LOCK_PATIENCE = 10.0


class Logger:
    """Text stream that writes to the console and to a file.

    Every full line reaches the file at once, so a killed run leaves its log. Closing the logger
    closes the file only; the console belongs to the process.

    Args:
        fpath: log file, opened for appending; None writes to the console only.
        console: stream to forward to; None means the present ``sys.stdout``.
    """

    def __init__(self, fpath: str | None = None, console: TextIO | None = None) -> None:
        self.console = sys.stdout if console is None else console
        self.file: TextIO | None = None
        if fpath is not None:
            os.makedirs(os.path.dirname(os.path.abspath(fpath)), exist_ok=True)
            self.file = open(fpath, "a", buffering=1, encoding="utf-8")

    def write(self, msg: str) -> int:
        self.console.write(msg)
        if self.file is not None:
            with self._giving_up():
                self.file.write(msg)
        return len(msg)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            with self._giving_up():
                self.file.flush()
                os.fsync(self.file.fileno())

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Go on without the file when it cannot be written: a run is worth more than its log."""
        try:
            yield
        except OSError as error:
            file, self.file = self.file, None
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
        if name in ("console", "file"):
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Copy all further standard output to a log file.

    An existing file is continued, so that the log of a resumed run is one file whose last result
    is the newest (upstream starts ``log.txt-<date>``, which parsers do not find). A second call
    moves the copy to the new file.

    Args:
        output: path ending in ``.txt`` or ``.log``, or a folder that gets ``log.txt``; None does
            nothing.

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
        logger = Logger(fpath, console)
    except OSError as error:
        raise OSError(
            f"cannot write {fpath} ({error.strerror}): choose another folder with --output-dir "
            "(OUTPUT_DIR)"
        ) from error
    if not _locked(logger.file):
        logger.close()
        raise BlockingIOError(
            f"another process is writing {fpath}: wait for it, or choose another folder with "
            "--output-dir (OUTPUT_DIR)"
        )
    sys.stdout = logger


def _locked(file: TextIO) -> bool:
    """Lock a file until it is closed, where the system can; false if another process has it."""
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
