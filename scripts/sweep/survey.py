"""How far the runs of a sweep have come, and what those that are left will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import protocols
from scripts.run import find_weights, state_of
from support.claims import holder_of
from support.disk import sweep_shortage
from support.words import counted

from .plan import Call, Chain, title


@dataclass(frozen=True)
class Found:
    """What was found of a call's run.

    ``state`` is ``finished``; ``busy``, another process is doing it; ``started``, it goes on from
    what was saved; ``new``; or ``refused``, it cannot be done. ``reason`` says by whom, or why not.
    ``seconds`` are those of a finished run, if known, and ``folders`` where it lies.
    """

    state: Literal["finished", "busy", "started", "new", "refused"]
    reason: str = ""
    seconds: float | None = None
    folders: tuple[str, ...] = ()


def look_at(call: Call, env: Mapping[str, str]) -> Found:
    """Return how far a call's run has come."""
    from scripts.planning import plan

    method, script, *words = call
    total, states, folders = 0.0, set(), []
    try:
        planned = plan(method, script, words, env)
        for run in planned.runs:
            weights = find_weights(planned, run)
            for seed in run.seeds:
                state, _, seconds = state_of(planned, run, seed, weights)
                states.add(state)
                total += seconds or 0.0
                folder = run.folder_of(seed)
                folders.append(folder)
                if state != "finished" and (claimant := holder_of(folder)):
                    return Found("busy", f"{folder} is done by {claimant}")
    except (ValueError, OSError) as error:
        return Found("refused", str(error))
    if states == {"finished"}:
        return Found("finished", "", total or None, tuple(folders))
    return Found("started" if states - {"new"} else "new")


def survey(chains: Sequence[Chain], env: Mapping[str, str]) -> dict[Call, Found]:
    """Return how far every run of some chains has come."""
    found: dict[Call, Found] = {}
    for chain in chains:
        found[chain.train] = look_at(chain.train, env)
        ended = found[chain.train].state == "finished"
        for test in chain.tests:  # without a training there is nothing that was tested
            found[test] = look_at(test, env) if ended else Found("new")
    return found


def shortage(found: Mapping[Call, Found], output: str | Path) -> str | None:
    """Say when the runs that are left will not fit on the disk; None where they fit.

    Args:
        found: what was found of every call.
        output: where the folders of the runs lie.
    """
    left = sum(one.state not in ("finished", "refused") for one in found.values())
    finished = [folder for one in found.values() for folder in one.folders]
    return sweep_shortage(output, left, finished[:50])


class Costs:
    """What runs took, and what others will take: means over the runs most like them."""

    def __init__(self, found: Mapping[Call, Found]) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for call, one in found.items():
            if one.seconds is not None:
                self.add(call, one.seconds)

    @staticmethod
    def _kinds(call: Call) -> Iterable[tuple[str, ...]]:
        method, script, dataset, *rest = call
        shots = rest[:1] if "SHOTS" in protocols.find_script(script)[1].arguments else []
        yield (method, script, dataset, *shots)
        yield method, script
        yield (script,)

    def add(self, call: Call, seconds: float) -> None:
        """Note what a run took."""
        for kind in self._kinds(call):
            self._seconds[kind].append(seconds)

    def of(self, call: Call) -> float | None:
        """Return the seconds that a run will take; None where nothing like it has ended."""
        for kind in self._kinds(call):
            if kind in self._seconds:
                return fmean(self._seconds[kind])
        return None

    def left(
        self, calls: Iterable[Call], at_once: int, gone: Mapping[Call, float] | None = None
    ) -> float | None:
        """Return the seconds until calls have ended, some at once; None where nothing is known.

        Args:
            calls: those that are left; the ones of unknown cost count nothing.
            at_once: number of calls that are done at once.
            gone: seconds for which some of them have run.
        """
        gone = gone or {}
        each = [
            max(0.0, seconds - gone.get(call, 0.0))
            for call in calls
            if (seconds := self.of(call)) is not None
        ]
        # one alone cannot be shared
        return max(sum(each) / at_once, *each) if each else None


def spell(seconds: float) -> str:
    """Return a time in words: 42 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


STATES = {"finished": "finished", "started": "unfinished", "busy": "elsewhere", "new": "to do"}


def describe(found: Mapping[Call, Found], costs: Costs, at_once: int, where: str) -> str:
    """Return the plan of a sweep, as a table by method and script with a line below.

    Args:
        found: what was found of every call.
        costs: what they take.
        at_once: number of runs that are done at once.
        where: what they are done on.
    """
    from tabulate import tabulate

    groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in found:
        groups[call[0], call[1]].append(call)
    names = {**STATES, "refused": "refused"}
    shown = [name for name in names if any(one.state == name for one in found.values())]
    rows = []
    for (method, script), calls in groups.items():
        counts = [sum(found[call].state == name for call in calls) for name in shown]
        todo = [call for call in calls if found[call].state not in ("finished", "refused")]
        each = [seconds for call in todo or calls if (seconds := costs.of(call)) is not None]
        cost = spell(fmean(each)) if each else "?"
        rows.append([method, script, len(calls), *counts, cost])
    header = ["method", "script", "runs", *(names[name] for name in shown), "each"]
    lines = [tabulate(rows, header)]
    for call in [call for call, one in found.items() if one.state == "refused"][:5]:
        lines.append(f"refused: {title(call)}: {found[call].reason}")
    todo = [call for call, one in found.items() if one.state not in ("finished", "refused")]
    unknown = sum(costs.of(call) is None for call in todo)
    left = costs.left(todo, at_once)
    time = "no finished run tells how long it takes"
    if left is not None:
        time = f"about {spell(left)}"
    if not todo:
        time = "nothing to do"
    if left is not None and unknown:
        time += f", and {counted(unknown, 'run')} of unknown length"
    together = "one" if at_once == 1 else at_once
    lines.append(
        f"{counted(len(found), 'run')}, {len(todo)} left, {together} at a time {where}: {time}"
    )
    return "\n".join(lines)
