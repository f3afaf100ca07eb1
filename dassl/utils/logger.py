"""Copy of standard output in a log file."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

__all__ = ["Logger", "setup_logger"]


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
            self.file.write(msg)
        return len(msg)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

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
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    console = sys.stdout
    if isinstance(console, Logger):
        console.close()
        console = console.console
    sys.stdout = Logger(fpath, console)
