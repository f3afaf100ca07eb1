"""Makes the calls of a sweep on this machine, several at once, and some of them again."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scripts.run import BUSY, FINISHED, NOTE, ROOT
from support.claims import is_alive
from support.command_line import INTERRUPTED, UNFINISHED, WRONG_INPUT

from .board import Board
from .plan import Call, Chain, title
from .survey import Found, look_at

_HOST = socket.gethostname()
#: how often a run may end unfinished and be continued, in one sweep
CONTINUATIONS = 20
#: seconds until a run is tried again, or until it is looked again at one that another process does
PAUSE = 1.0
LOOK_AGAIN = 3.0
#: name of the file, beside the logs, that keeps every call that failed; a JSON object a line
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Task:
    """Calls that are made in turn; if the first one trains, the others need it.

    ``after`` is the time, of the monotonic clock, before which it is not begun; ``busy_since`` the
    one at which another process was first seen to do it.
    """

    calls: tuple[Call, ...]
    trains: bool
    after: float = 0.0
    busy_since: float | None = None


def tasks_of(chains: Sequence[Chain], found: Mapping[Call, Found]) -> list[Task]:
    """Return what is left of chains; tests of what is trained already do not wait for another."""
    tasks = []
    for chain in chains:
        if found[chain.train].state != "finished":
            tasks.append(Task(tuple(chain.calls), trains=True))
            continue
        left = [test for test in chain.tests if found[test].state != "finished"]
        tasks += [Task((test,), trains=False) for test in left]
    return tasks


def keep_left_logs(logs: Path) -> None:
    """Give logs that killed sweeps of this machine left their final names.

    While a run goes on, host and process of its sweep are at the end of the name: another sweep
    may make the same call, to find that the run is being done.
    """
    for path in logs.glob("*.txt.*"):
        final, _, sweep = path.name.rpartition(".txt.")
        host, _, pid = sweep.rpartition("-")
        if host == _HOST and pid.isdecimal() and not is_alive(int(pid)):
            with contextlib.suppress(FileNotFoundError):  # another sweep begins at the same time
                os.replace(path, path.with_name(f"{final}.txt"))


def add_line(path: Path, entry: Mapping[str, object]) -> None:
    """Append a JSON object as a line of its own, also behind a line that was cut off."""
    with open(path, "ab+") as file:
        line = json.dumps(entry).encode() + b"\n"
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


def log_of(logs: Path, call: Call, env: Mapping[str, str]) -> Path:
    """Return the file that a call's output goes to."""
    settings = [env[key] for key in ("CFG", "TAG", "SOURCE") if env.get(key)]
    return logs / f"{'-'.join([*title(call).split(), *settings])}.txt"


class Runner:
    """Makes calls of run.sh, several at once, each with a log of its own.

    A run that ends unfinished is continued; one that fails is tried again after the others, unless
    its input is wrong; one that another process is doing is looked at again.

    Args:
        logs: folder for the logs.
        env: environment of the calls.
        places: for each run at once, the variables that are its own.
        board: told what becomes of the calls.
        retries: how often a run that fails is tried again.
        patience: seconds after which a run that another process does is left to it; None: never.
        setup: shell commands in front of each call.
    """

    def __init__(
        self,
        logs: Path,
        env: Mapping[str, str],
        places: Sequence[Mapping[str, str]],
        board: Board,
        retries: int,
        patience: float | None = None,
        setup: Sequence[str] = (),
    ) -> None:
        # unbuffered for the progress that is shown
        self.env = {**env, "PYTHONUNBUFFERED": "1", "BUSY": "skip"}
        keep_left_logs(logs)
        self.logs, self.places, self.board = logs, places, board
        self.retries, self.patience, self.setup = retries, patience, setup
        #: what to say of the calls that failed
        self.failures: list[str] = []
        self.stopped = self._complete = False
        self._changed = threading.Condition()
        self._queue: deque[Task] = deque()
        self._working = 0
        self._processes: set[subprocess.Popen] = set()
        self._failed: Counter[Call] = Counter()
        self._continued: Counter[Call] = Counter()
        self._said: set[Call] = set()

    def run(self, tasks: Iterable[Task]) -> None:
        """Make all calls.

        Raises:
            KeyboardInterrupt, SystemExit: the user or the system stops it; so are the calls.
        """
        self._queue.extend(tasks)
        every = 1 if sys.stderr.isatty() else 5  # seconds
        with ThreadPoolExecutor(len(self.places)) as pool:
            workers = {pool.submit(self._work, place) for place in self.places}
            try:
                while workers:
                    done, workers = wait(workers, every, FIRST_COMPLETED)
                    for worker in done:
                        worker.result()
                    self.board.show()
                self._complete = not self.stopped
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is being done
                raise
            finally:
                self.stop()

    @property
    def stopped_early(self) -> bool:
        """Whether it was stopped before all calls were made."""
        return self.stopped and not self._complete

    def stop(self) -> None:
        """Begin no call any more, and have those that run save and end."""
        with self._changed:
            self.stopped = True
            for process in self._processes:
                process.terminate()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for the calls to end after ``stop``; return whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._processes, seconds)

    def _work(self, place: Mapping[str, str]) -> None:
        while (task := self._next()) is not None:
            later: list[Task] = []
            try:
                later = self._do(task, place)
            finally:
                with self._changed:
                    self._working -= 1
                    self._queue.extend(later)
                    self._changed.notify_all()

    def _next(self) -> Task | None:
        """Return the task to do now, when there is one; None when all are done."""
        with self._changed:
            while not self.stopped and (self._queue or self._working):
                now = time.monotonic()
                for task in self._queue:
                    if task.after <= now:
                        self._queue.remove(task)
                        self._working += 1
                        return task
                due = min((task.after - now for task in self._queue), default=None)
                self._changed.wait(due)
            return None

    def _do(self, task: Task, place: Mapping[str, str]) -> list[Task]:
        """Make the calls of a task in turn; return what is left to do later."""
        later = []
        for number, call in enumerate(task.calls):
            needed = task.trains and number == 0
            rest = task.calls if needed else (call,)
            outcome = self._attempt(call, place)
            if self.stopped:
                return []
            if outcome == "busy":
                now = time.monotonic()
                since = now if task.busy_since is None else task.busy_since
                if self.patience is None or now - since < self.patience:
                    later.append(Task(rest, needed, now + LOOK_AGAIN, since))
                else:
                    for one in rest:
                        self.board.ended(one, "elsewhere")
            elif outcome == "again":
                later.append(Task(rest, needed, time.monotonic() + PAUSE))
            elif outcome == "failed" and needed:
                for one in rest[1:]:
                    self.board.ended(one, "not run")
            if needed and outcome not in ("done", "finished before"):
                return later
        return later

    def _attempt(self, call: Call, place: Mapping[str, str]) -> str:
        """Make a call if that is due.

        Returns:
            done, finished before, failed; or busy or again, where it is to be made later.
        """
        found = look_at(call, self.env)
        if found.state == "finished":
            self.board.ended(call, "finished before")
            return "finished before"
        if found.state == "busy":
            return self._busy(call, found.reason)
        log, start = log_of(self.logs, call, self.env), time.monotonic()
        own = log.with_name(f"{log.name}.{_HOST}-{os.getpid()}")
        status = self._call(call, own, place)
        if status is None:
            own.unlink()
            return "stopped"
        lines = own.read_text(errors="replace").splitlines()
        if status == UNFINISHED and lines and lines[-1].startswith(BUSY):
            own.unlink()
            return self._busy(call, lines[-1].removeprefix(BUSY))
        os.replace(own, log)
        if self.stopped:
            self.board.paused(call)
            return "stopped"
        if status == 0:
            before = any(line.startswith(FINISHED) for line in lines) and all(
                line.startswith((FINISHED, NOTE)) for line in lines
            )
            outcome = "finished before" if before else "done"
            self.board.ended(call, outcome, None if before else time.monotonic() - start)
            return outcome
        reason = next((line.strip() for line in lines[::-1] if line.strip()), "")
        if status in (UNFINISHED, INTERRUPTED):
            self._continued[call] += 1
            again = self._continued[call] <= CONTINUATIONS
            what = f"ended unfinished {self._continued[call]} times"
        else:
            self._failed[call] += 1
            again = status != WRONG_INPUT and self._failed[call] <= self.retries
            what = "failed"
        self._note(call, status, again, reason, lines, log)
        if again:
            self.board.paused(call)
            if what == "failed":
                self.board.say(f"{title(call)} failed: {reason} (status {status}); trying again")
            return "again"
        with self._changed:
            self.failures.append(f"{title(call)} {what}: {reason} (status {status}, log {log})")
        self.board.ended(call, "failed")
        return "failed"

    def _busy(self, call: Call, reason: str) -> str:
        self.board.paused(call)
        if call not in self._said:
            self._said.add(call)
            self.board.say(f"{BUSY}{reason}; looking again later")
        return "busy"

    def _call(self, call: Call, log: Path, place: Mapping[str, str]) -> int | None:
        """Make a call; return its status, None if it was not begun any more."""
        run = shlex.join(["exec", "bash", str(ROOT / "scripts" / "run.sh"), *call])
        # SLURM sends USR2, which submitit wants, to all processes of a job.
        lines = ['trap "" USR2', *self.setup, run]
        with open(log, "wb") as out, self._changed:
            if self.stopped:
                return None
            process = subprocess.Popen(
                ["bash", "-c", "\n".join(lines)],
                env={**self.env, **place},
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is passed on when it may end, as SIGTERM
            )
            self._processes.add(process)
        self.board.started(call, log)
        status = process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)  # what it may have left behind
        with self._changed:
            self._processes.remove(process)
            self._changed.notify_all()
        return status if status >= 0 else 128 - status

    def _note(
        self, call: Call, status: int, again: bool, reason: str, lines: list[str], log: Path
    ) -> None:
        """Keep what a call that did not succeed said: the next attempt writes another log."""
        note = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "host": _HOST,
            "run": title(call),
            "call": call,
            "status": status,
            "again": again,
            "reason": reason,
            "log": str(log),
            "end_of_log": lines[-20:],
        }
        add_line(self.logs / FAILURES, note)
