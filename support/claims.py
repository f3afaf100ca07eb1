"""Claims of run folders: of several calls that are to do one run, one does it, the others know.

A claim is a file in the run's folder that names its host, its processes and the time. It appears
whole and once, also on file systems that machines share. Whoever holds it renews its time while the
run lasts. It no longer counts when its processes have ended, which only their own machine can see;
elsewhere when it was not renewed for :data:`STALE` seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

FILE = "claim.json"
#: seconds between two renewals, and those after which another machine's claim is taken over
RENEW, STALE = 15.0, 300.0


@dataclass(frozen=True)
class Claimant:
    """Who holds a claim.

    ``processes`` are ids with the times when these processes started, in the machine's own unit or
    None where it does not tell; ``machine`` says on which machines these ids mean the same.
    """

    host: str
    machine: str
    processes: tuple[tuple[int, str | None], ...]
    since: str
    token: str

    def __str__(self) -> str:
        if not self.processes:
            return (
                f"an unknown process: {FILE} there cannot be read, and counts for {STALE:.0f} s "
                "after it was written"
            )
        return f"process {self.processes[-1][0]} on {self.host} since {self.since}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str | None:
    """Return when a process started, as Linux counts; None where that cannot be told.

    Raises:
        ProcessLookupError: there is no such process, or it has ended.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        # behind the name, which may hold anything, in parentheses
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError from None
    if fields[0] in "ZX":
        raise ProcessLookupError
    return fields[19]


def is_alive(pid: int, start: str | None = None) -> bool:
    """Return whether a process of this machine runs, with this start where one is given."""
    try:
        if sys.platform.startswith("linux"):
            now = _start_of(pid)
            return start is None or start == now
        if os.name == "posix":
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> Claimant | None:
    """Return who holds a claim; None if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple((int(pid), start) for pid, start in content["processes"])
        texts = [str(content[name]) for name in ("host", "machine", "since", "token")]
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ):  # of something else: its age tells
        return Claimant("", "", (), "", "")
    host, machine, since, token = texts
    return Claimant(host, machine, processes, since, token)


def _age(path: Path) -> float:
    """Return the seconds since a file was written, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _is_stale(path: Path, claimant: Claimant) -> bool:
    if claimant.machine == _machine():
        return not any(is_alive(*process) for process in claimant.processes)
    # a time that lies ahead is left where a clock was set back: renewing corrects it
    return abs(_age(path)) > STALE


def _create(path: Path, content: str) -> bool:
    """Let a file appear with its content; return False if there is one already."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(content, encoding="utf-8")
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # NFS may answer so to a request that it carried out and got again
            return temporary.stat().st_nlink == 2
        except OSError:  # a file system without hard links
            with open(path, "x", encoding="utf-8") as file:
                file.write(content)
            return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def holder_of(folder: str | Path) -> Claimant | None:
    """Return who does the run in a folder now; None if nobody does."""
    path = Path(folder, FILE)
    claimant = _read(path)
    return None if claimant is None or _is_stale(path, claimant) else claimant


class Claim:
    """The claim of this process to the runs in some folders, as a context in which it is held.

    Args:
        folders: of the runs; missing ones are created, and removed again if they stay empty.
        lost: called, in a thread, when another process has taken the claim over, which happens
            after this machine was out of touch for :data:`STALE` seconds.

    On entering, ``holder`` becomes None, or is who holds one of the folders; then none is claimed.
    """

    def __init__(
        self, folders: Sequence[str | Path], lost: Callable[[], None] = lambda: None
    ) -> None:
        self.holder: Claimant | None = None
        self._lost = lost
        # always in the same order, so that of two with several folders one gets all
        self._paths = [Path(folder, FILE) for folder in sorted(map(str, folders))]
        self._held: list[Path] = []
        self._token = uuid.uuid4().hex
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._processes = [(os.getpid(), _start_of(os.getpid()))]
        self._released = threading.Event()
        self._renewing: threading.Thread | None = None

    def _content(self) -> str:
        content = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "processes": self._processes,
            "since": self._since,
            "token": self._token,
        }
        return json.dumps(content) + "\n"

    def __enter__(self) -> Claim:
        for path in self._paths:
            self.holder = self._take(path)
            if self.holder is not None:
                self._release()
                break
            self._held.append(path)
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _take(self, path: Path) -> Claimant | None:
        """Claim one folder; return who has it instead."""
        while True:
            # whoever releases a claim removes the folder that it leaves empty
            with contextlib.suppress(FileNotFoundError):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                except FileExistsError:  # as it is said of one that is removed just then
                    if path.parent.is_file():
                        raise
                if _create(path, self._content()):
                    return None
                claimant = _read(path)
                if claimant is None:
                    continue
                if not _is_stale(path, claimant):
                    return claimant
                if self._take_over(path, claimant):
                    return None
                time.sleep(0.05)

    def _take_over(self, path: Path, claimant: Claimant) -> bool:
        """Replace a claim that no longer counts; return False if another process was faster."""
        # Several may see it at once: one at a time looks again and replaces what it saw.
        guard = path.with_name(f"{path.name}.taken-over")
        if not _create(guard, self._content()):
            other = _read(guard)
            if other is not None and _is_stale(guard, other):
                guard.unlink(missing_ok=True)
            return False
        try:
            if _read(path) != claimant:
                return False
            _replace(path, self._content())
            return True
        finally:
            guard.unlink(missing_ok=True)

    def add_process(self, pid: int) -> None:
        """Name a process that does the run as well: the claim counts until it has ended, too."""
        with contextlib.suppress(ProcessLookupError):
            self._processes.append((pid, _start_of(pid)))
        for path in self._held:
            _replace(path, self._content())

    def keep(self) -> None:
        """Renew the claim from now on. It is a thread's work: start processes before it."""
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()

    def _renew(self) -> None:
        while not self._released.wait(RENEW):
            for path in self._held:
                with contextlib.suppress(OSError):  # the file system may be away for a while
                    claimant = _read(path)
                    if claimant is not None and claimant.token not in ("", self._token):
                        return self._lost()
                    os.utime(path)

    def _release(self) -> None:
        self._released.set()
        if self._renewing is not None:
            self._renewing.join()
        for path in self._held:
            claimant = _read(path)
            if claimant is not None and claimant.token == self._token:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it has files, as a run leaves them
                path.parent.rmdir()
        self._held = []
