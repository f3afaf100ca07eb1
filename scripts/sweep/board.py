"""What a sweep shows while it runs: a bar on a terminal, else plain lines."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from .plan import Call, title
from .survey import Costs, spell

#: what becomes of runs, in the order in which it is told
OUTCOMES = ("done", "finished before", "in the queue", "elsewhere", "failed", "not run")


def progress(log: Path) -> str:
    """Return the epoch that a run's log has come to, as in " (epoch 3/20)", or nothing."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        if epochs := re.findall(r"epoch \[(\d+/\d+)\]", file.read().decode(errors="replace")):
            return f" (epoch {epochs[-1]})"
    return ""


class Board:
    """Counts runs by what became of them, and shows them with those that run and the time left.

    Args:
        calls: those that are left to do.
        finished: number of those that were finished before.
        costs: what runs take; what they take here is added.
        at_once: number of runs that are done at once.
    """

    def __init__(self, calls: Iterable[Call], finished: int, costs: Costs, at_once: int) -> None:
        from tqdm import tqdm

        self.lock = threading.RLock()
        self.counts = dict.fromkeys(OUTCOMES, 0) | {"finished before": finished}
        #: call, what became of it, and its seconds if it did something
        self.outcomes: list[tuple[Call, str, float | None]] = []
        self._left = set(calls)
        self._total = finished + len(self._left)
        self._costs, self._at_once = costs, at_once
        #: what runs -> when it started, and its log if that is known
        self._running: dict[Call, tuple[float, Path | None]] = {}
        self._bar = None
        if sys.stderr.isatty():
            shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(
                total=self._total, initial=finished, dynamic_ncols=True, bar_format=shape
            )

    def summary(self) -> str:
        """Return the number of runs by outcome, as text."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)

    def time_left(self) -> str:
        """Return the time that is left, as in "about 12 min left"; nothing where that is not known.

        It is not where nothing tells what one of the runs takes, nor where those that are left have
        run for longer than others like them.
        """
        if any(self._costs.of(call) is None for call in self._left):
            return ""
        now = time.monotonic()
        gone = {call: now - start for call, (start, _) in self._running.items()}
        left = self._costs.left(self._left, self._at_once, gone)
        return f"about {spell(left)} left" if left is not None and left >= 0.5 else ""

    def say(self, text: str) -> None:
        """Print a line."""
        with self.lock:
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def started(self, call: Call, log: Path | None) -> None:
        with self.lock:
            self._running[call] = time.monotonic(), log
            if self._bar is None:
                self.say(f"running {title(call)}")
            self.show()

    def paused(self, call: Call) -> None:
        """Note that a call does not run any more and is to run again."""
        with self.lock:
            self._running.pop(call, None)

    def ended(self, call: Call, outcome: str, seconds: float | None = None) -> None:
        """Note, once, what became of a call, and if it did something how long that took."""
        with self.lock:
            self._running.pop(call, None)
            if call not in self._left:
                return
            self._left.discard(call)
            self.counts[outcome] += 1
            self.outcomes.append((call, outcome, seconds))
            if seconds is not None:
                self._costs.add(call, seconds)
            if self._bar is not None:
                self._bar.update()
                self.show()
                return
            ended = self._total - len(self._left)
            took = f", {spell(seconds)}" if seconds is not None else ""
            left = f"; {left}" if (left := self.time_left()) and self._left else ""
            self.say(f"[{ended}/{self._total}] {outcome}: {title(call)}{took}{left}")

    def show(self) -> None:
        """Show on the bar what has ended and what runs."""
        with self.lock:
            if self._bar is None:
                return
            running = [(call, log) for call, (_, log) in self._running.items()]
            shown = list(filter(None, [self.summary(), self.time_left()]))
            if running:
                call, log = running[0]
                shown.append(f"running {title(call)}{progress(log) if log else ''}")
            if len(running) > 1:
                shown.append(f"{len(running) - 1} more")
            self._bar.set_postfix_str(", ".join(shown))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
