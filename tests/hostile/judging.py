"""The one check for all readers: what became of a hostile input."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from support.command_line import WRONG_INPUT, run

#: seconds of the processor, and of the clock, that one input may take
SECONDS, CLOCK_SECONDS = 5.0, 30.0
#: longest line that an error may be, in characters
LONGEST_LINE = 2000
#: name of the file that a payload would create, and of what lies beside the target folder
CANARY, BESIDE = "executed", "beside.txt"


class Session(Protocol):
    """A reader with its valid material; ``Reader.make`` makes it."""

    def write(self, rng: random.Random | None, target: Path) -> None:
        """Write an input into the empty folder ``target``: a valid one without ``rng``."""

    def read(self, target: Path) -> None:
        """Read it as the toolbox does, and use what was read."""


@dataclass
class Outcome:
    """What became of one input.

    ``verdict`` is ``read``, ``refused`` (by one line), ``traceback`` (an error that nobody foresaw,
    or more or less than one line of it) or ``hang``; ``line`` is what was said. ``escaped`` tells
    of files outside of the target folder, ``executed`` of a payload that ran; ``memory_mb`` is what
    the process took more at the most, in 10^6 bytes, ``seconds`` those of the processor.
    """

    number: int
    verdict: str
    line: str = ""
    escaped: bool = False
    executed: bool = False
    memory_mb: float = 0.0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Hang(BaseException):
    """An input takes too long; no ``Exception``, so that no reader catches it."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raise ``Hang`` in the main thread after the time that one input may take."""

    def stop(*_: object) -> None:
        raise Hang(f"takes more than {SECONDS:g} s, or waits for {CLOCK_SECONDS:g} s")

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS),)
    clocks += ((signal.SIGALRM, signal.ITIMER_REAL, CLOCK_SECONDS),)
    former = [signal.signal(number, stop) for number, _, _ in clocks]
    for _, timer, seconds in clocks:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(clocks, former, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _memory(field: str) -> int:
    """Return a field of this process's status in bytes; 0 where the system has none."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    return 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _remains(box: Path) -> list[str]:
    return sorted(f"{entry.name} {entry.lstat().st_size}" for entry in box.iterdir())


def judge(session: Session, seed: str, number: int, box: Path) -> Outcome:
    """Write one input, read it and say what became of it.

    Args:
        session: the reader.
        seed: with the number, decides on the input.
        number: of the input; 0 is the valid one, without any change.
        box: folder that is emptied first. The input goes into the folder ``target`` in it, beside
            a file that has to stay as it is.
    """
    shutil.rmtree(box, ignore_errors=True)
    target = box / "target"
    target.mkdir(parents=True)
    (box / BESIDE).write_text("left alone")
    session.write(random.Random(f"{seed} {number}") if number else None, target)
    expected = _remains(box)
    out, err = io.StringIO(), io.StringIO()
    _forget_peak()
    before, start = _memory("VmRSS"), time.process_time()
    status, hang = None, ""
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            time_limit(),
        ):
            warnings.simplefilter("ignore")
            status = run(lambda: session.read(target))
    except Hang as error:
        hang = str(error)
    except BaseException as error:
        err.write(f"error: unexpected {error!r} that ends the process\n")
    seconds, memory = time.process_time() - start, max(0, _memory("VmHWM") - before)
    executed = (box / CANARY).exists()
    escaped = [name for name in _remains(box) if not name.startswith(f"{CANARY} ")] != expected
    errors = [line for line in err.getvalue().split("\n") if line.startswith("error: ")]
    line = errors[0] if errors else ""
    if hang:
        verdict, line = "hang", hang
    elif status == 0 and not errors:
        verdict = "read"
    elif status == WRONG_INPUT and len(errors) == 1 and _is_readable(line):
        verdict = "refused"
    else:
        verdict = "traceback"
    return Outcome(
        number, verdict, line[:400], escaped, executed, round(memory / 1e6, 1), round(seconds, 3)
    )


def _is_readable(line: str) -> bool:
    return len(line) <= LONGEST_LINE and line.isprintable()


def warm_up(session: Session, box: Path) -> None:
    """Read the valid input once: what is imported on first use is no matter of an input."""
    (box / "target").mkdir(parents=True)
    session.write(None, box / "target")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session.read(box / "target")


def clean_environment(folder: Path) -> None:
    """Let caches of the toolbox lie below a folder."""
    os.environ["CLIP_CACHE"] = str(folder / "clip-cache")
    os.environ["DASSL_CACHE"] = str(folder / "image-cache")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
