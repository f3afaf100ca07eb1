"""Makes the calls of a sweep as jobs of a SLURM cluster, through submitit.

A job has a training and its tests, or several of these. When SLURM is about to end it for its time,
or for a job of higher priority, the run saves and ends, and the job is queued again and goes on.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.run import ROOT
from support.claims import STALE
from support.hints import nearest
from support.words import counted

from .board import Board
from .gpus import number_of
from .plan import Call
from .runner import LOOK_AGAIN, Runner, Task, add_line
from .survey import Costs, look_at

#: variables that a job gets from the sweep; SLURM need not pass on others
VARIABLES = (
    *("DATA", "OUTPUT", "SHOTS", "SOURCE", "CFG", "TAG", "WEIGHTS", "SUBFOLDER", "PYTHON"),
    *("JOBS_PER_GPU", "OMP_NUM_THREADS", "CLIP_CACHE", "DASSL_CACHE"),
)
#: those of them that make another run of the same call
SETTINGS = ("DATA", "SHOTS", "SOURCE", "CFG", "TAG", "WEIGHTS", "SUBFOLDER")
#: name of the file that says which jobs were submitted; a JSON object a line
SUBMITTED = "submitted.jsonl"
#: seconds that a job waits for a run of another process: a killed one's claim counts no longer
PATIENCE = STALE + 60
#: seconds between two looks at the jobs
EVERY = 2.0


# --- settings of a cluster ------------------------------------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _number(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, str) or not value.isdecimal() or int(value) < least:
            raise ValueError(f"a whole number from {least} on")
        return int(value)

    return read


def _matching(pattern: str, what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return read


def _minutes(value: Any) -> int:
    """Read a time in the ways of SLURM, and return whole minutes, rounded up."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(value))
    if not isinstance(value, str) or not found:
        raise ValueError("minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if not total:
        raise ValueError("more than no time")
    return total


def _commands(value: Any) -> list[str]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("a list of shell commands")
    return lines


def _options(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError("a mapping of options of sbatch, without --, to values")
    return value


@dataclass(frozen=True)
class Cluster:
    """Settings of the jobs: what ``configs/clusters/example.yaml`` explains.

    ``time`` is in minutes, ``signal_delay`` in seconds.
    """

    name: str = field(default="sweep", metadata={"read": _text})
    partition: str | None = field(default=None, metadata={"read": _text})
    account: str | None = field(default=None, metadata={"read": _text})
    qos: str | None = field(default=None, metadata={"read": _text})
    constraint: str | None = field(default=None, metadata={"read": _text})
    nodelist: str | None = field(default=None, metadata={"read": _text})
    exclude: str | None = field(default=None, metadata={"read": _text})
    gpus: str = field(
        default="1",
        metadata={"read": _matching(r"(\w+:)?\d+", "a number of GPUs, or type:number")},
    )
    cpus: int = field(default=4, metadata={"read": _number(1)})
    memory: str = field(
        default="16G", metadata={"read": _matching(r"\d+[KMGT]?B?", "a size such as 16G")}
    )
    time: int = field(default=240, metadata={"read": _minutes})
    parallel: int = field(default=64, metadata={"read": _number(1)})
    array: int = field(default=1000, metadata={"read": _number(1)})
    chains: int = field(default=1, metadata={"read": _number(1)})
    signal_delay: int = field(default=120, metadata={"read": _number(20)})
    timeouts: int = field(default=20, metadata={"read": _number(0)})
    setup: list[str] = field(default_factory=list, metadata={"read": _commands})
    extra: dict[str, str] = field(default_factory=dict, metadata={"read": _options})

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that submitit's SLURM executor takes."""
        given = asdict(self)
        named = ("partition", "account", "qos", "constraint", "nodelist", "exclude")
        found = {name: given[name] for name in named if given[name] is not None}
        if self.gpus.rpartition(":")[2] != "0":
            found["gpus_per_node"] = self.gpus
        # Jobs find the toolbox also where SLURM is told not to pass on the environment.
        path = f"export PYTHONPATH={_quoted(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
        return {
            **found,
            "job_name": self.name,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "mem": self.memory,
            "time": self.time,
            "signal_delay_s": self.signal_delay,
            "array_parallelism": self.parallel,
            "setup": [*self.setup, path],
            **({"additional_parameters": self.extra} if self.extra else {}),
        }


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def read_cluster(path: str | Path | None) -> Cluster:
    """Return the settings of a file; those of every key by default where none is given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has an unknown key, or a value that cannot be.
    """
    import yaml

    if path is None:
        return Cluster()
    try:
        # as text: YAML would read the time 4:00:00 as the number 14400
        table = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader) or {}
    except FileNotFoundError:
        there = sorted(file.name for file in Path(path).parent.glob("*.yaml"))
        hint = nearest(Path(path).name, there)
        raise FileNotFoundError(f"--cluster: no file {path}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--cluster: {path} is not valid YAML: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"--cluster: {path} must hold 'key: value' lines")
    readers = {one.name: one.metadata["read"] for one in fields(Cluster)}
    values = {}
    for key, value in table.items():
        if key not in readers:
            names = " ".join(readers)
            raise ValueError(
                f"--cluster: {path} has no use for {key!r}; there are: {names}"
                f"{nearest(key, readers)}"
            )
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise ValueError(f"--cluster: {path}: {key} must be {error}, not {value!r}") from None
    cluster = Cluster(**values)
    if cluster.signal_delay >= 60 * cluster.time:
        raise ValueError(f"--cluster: {path}: signal_delay is as long as time, {cluster.time} min")
    return cluster


# --- a job ----------------------------------------------------------------------------------------


@dataclass
class Job:
    """What a job does: a picklable function of submitit.

    Args:
        tasks: what it is to do.
        variables: of the sweep's environment.
        logs: folder for the logs.
        retries: how often a run that fails is tried again.
        grace: seconds that its runs have for saving when it is to end.
        setup: shell commands in front of each run, where no script of a job has them.
        board: told what becomes of the calls in this process, where no other job takes the place
            of one that waits; None: the job has one of its own.
    """

    tasks: tuple[Task, ...]
    variables: dict[str, str]
    logs: str
    retries: int
    grace: float
    setup: Sequence[str] = ()
    board: Board | None = None

    def __call__(self) -> dict[str, Any]:
        """Make the calls.

        Returns:
            ``outcomes``, a list of call, outcome and seconds or None; ``failures``, texts.
        """
        os.chdir(ROOT)
        env = {**os.environ, **self.variables}
        calls = [call for task in self.tasks for call in task.calls]
        places: list[dict[str, str]] = [{}] * (number_of(env, "JOBS_PER_GPU") or 1)
        board = self.board or Board(calls, 0, Costs({}), len(places))
        patience = None if self.board else PATIENCE
        told = len(board.outcomes)
        runner = Runner(Path(self.logs), env, places, board, self.retries, patience, self.setup)
        self._runner = runner
        before = signal.signal(signal.SIGTERM, lambda *_: runner.stop())
        try:
            runner.run(self.tasks)
            if runner.stopped_early:  # the signal to queue it again follows, or its end
                time.sleep(self.grace)
                raise RuntimeError("the job was told to end (SIGTERM); its runs saved")
        finally:
            if board is not self.board:
                board.close()
            signal.signal(signal.SIGTERM, before)
        return {"outcomes": board.outcomes[told:], "failures": runner.failures}

    def checkpoint(self) -> Any:
        """Have the runs save and end; return what is to be done when the job is queued again."""
        from submitit.helpers import DelayedSubmission

        self._runner.stop()
        self._runner.wait(self.grace)
        return DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_runner"}


# --- submitting and watching ----------------------------------------------------------------------


def require_submitit() -> Any:
    """Return the library.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise ValueError(
            f"jobs need submitit: {sys.executable} -m pip install -r requirements-slurm.txt"
        ) from None
    return submitit


def _executor(kind: str, cluster: Cluster, folder: Path) -> Any:
    submitit = require_submitit()
    if kind == "debug":
        return submitit.DebugExecutor(folder)
    if kind == "local":  # SLURM's place on one machine, for tests
        executor = submitit.LocalExecutor(folder, max_num_timeout=cluster.timeouts)
        minutes, delay = cluster.time, cluster.signal_delay
        executor.update_parameters(timeout_min=minutes, signal_delay_s=delay)
        return executor
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=cluster.timeouts)
    except RuntimeError as error:
        raise ValueError(
            "there is no srun here: EXECUTOR=slurm is for the login node of a SLURM cluster, "
            "EXECUTOR=local runs on this machine"
        ) from error
    executor.update_parameters(**cluster.parameters())
    return executor


def _settings(env: Mapping[str, str]) -> dict[str, str]:
    return {name: env[name] for name in SETTINGS if env.get(name)}


def queued(folder: Path, env: Mapping[str, str]) -> dict[Call, str]:
    """Return the calls of jobs that an earlier sweep submitted and that have not ended, with them.

    Args:
        folder: of the jobs.
        env: environment of this sweep; with other settings a call is another run.
    """
    try:
        lines = (folder / SUBMITTED).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    ids = set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())
    found: dict[Call, str] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["job"] in ids and entry["settings"] == _settings(env):
                found |= {tuple(call): entry["job"] for call in entry["calls"]}
        except (ValueError, KeyError, TypeError, RecursionError):  # as a full disk leaves it
            continue
    return found


def submit(
    kind: str,
    cluster: Cluster,
    tasks: Sequence[Task],
    logs: Path,
    env: Mapping[str, str],
    retries: int,
    board: Board | None = None,
) -> list[tuple[Any, tuple[Task, ...]]]:
    """Submit jobs, as arrays.

    Args:
        kind: ``slurm``, or ``local`` or ``debug`` for submitit's executors without a cluster.
        cluster: settings of the jobs.
        tasks: what they are to do, in turn.
        logs: folder for the logs.
        env: environment of the sweep.
        retries: how often a run that fails is tried again.
        board: told at once what becomes of the calls, with ``debug``.

    Returns:
        The jobs, each with its tasks.

    Raises:
        ValueError: submitit or SLURM is missing, or SLURM refuses the jobs.
    """
    folder = logs / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    executor = _executor(kind, cluster, folder)
    here: dict[str, Any] = {"setup": cluster.setup, "board": board} if kind == "debug" else {}
    variables = {name: env[name] for name in VARIABLES if name in env}
    each, most = cluster.chains, cluster.array
    parts = [tuple(tasks[i : i + each]) for i in range(0, len(tasks), each)]
    arrays = [parts[i : i + most] for i in range(0, len(parts), most)]
    if kind == "slurm":  # the limit is one for all
        executor.update_parameters(array_parallelism=max(1, cluster.parallel // len(arrays)))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    jobs: list[tuple[Any, tuple[Task, ...]]] = []
    try:
        for array in arrays:
            batch = []
            with executor.batch():
                for part in array:
                    grace = cluster.signal_delay - 10
                    job = Job(part, variables, str(logs), retries, grace, **here)
                    batch.append((executor.submit(job), part))
            jobs += batch
            _note(folder, batch, env)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "submitit":
            raise
        raise ValueError(f"SLURM refuses the jobs: {error}") from error
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return jobs


def _note(
    folder: Path, jobs: Iterable[tuple[Any, tuple[Task, ...]]], env: Mapping[str, str]
) -> None:
    """Keep which jobs there are, so that the next sweep does not submit their runs again."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    for job, tasks in jobs:
        calls = [call for task in tasks for call in task.calls]
        entry = {"job": job.job_id, "time": now, "calls": calls, "settings": _settings(env)}
        add_line(folder / SUBMITTED, entry)


def run_jobs(
    kind: str,
    cluster: Cluster,
    tasks: Sequence[Task],
    logs: Path,
    env: Mapping[str, str],
    board: Board,
    retries: int,
    wait: bool,
) -> list[str]:
    """Submit jobs and wait for them.

    Args:
        kind, cluster, tasks, logs, env, retries: as for :func:`submit`.
        board: told what becomes of the calls.
        wait: return at once otherwise; the calls then count as in the queue.

    Returns:
        What to say of the calls that failed.

    Raises:
        ValueError: as for :func:`submit`.
    """
    failures: list[str] = []
    there = queued(logs / "jobs", env) if kind == "slurm" else {}
    for task in tasks:
        if task.calls[0] in there:
            for call in task.calls:
                board.ended(call, "in the queue")
    left = [task for task in tasks if task.calls[0] not in there]
    while left:
        jobs = submit(kind, cluster, left, logs, env, retries, board)
        names = sorted({job.job_id.partition("_")[0] for job, _ in jobs})
        submitted = counted(len(jobs), "job")
        board.say(f"submitted {submitted}: {', '.join(names)}; logs of jobs: {logs / 'jobs'}")
        if not wait:
            for _, part in jobs:
                for task in part:
                    for call in task.calls:
                        board.ended(call, "in the queue")
            return failures
        left = _watch(jobs, board, failures)
        while left and any(look_at(task.calls[0], env).state == "busy" for task in left):
            time.sleep(LOOK_AGAIN)
    return failures


def _watch(
    jobs: Sequence[tuple[Any, tuple[Task, ...]]], board: Board, failures: list[str]
) -> list[Task]:
    """Wait for jobs to end; return what they left to other processes."""
    left: list[Task] = []
    waiting = list(jobs)
    while waiting:
        ended = [pair for pair in waiting if pair[0].done()]
        waiting = [pair for pair in waiting if pair not in ended]
        for job, tasks in ended:
            calls = [call for task in tasks for call in task.calls]
            try:
                result = job.result()
            except Exception as error:  # of submitit: SLURM ended it, or it could not start
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                log = job.paths.stderr
                failures.append(f"job {job.job_id} failed: {reason[0].strip()} (log {log})")
                for call in calls:
                    board.ended(call, "failed")
                continue
            outcomes = {tuple(call): (what, took) for call, what, took in result["outcomes"]}
            failures += result["failures"]
            for task in tasks:
                again = [call for call in task.calls if outcomes[call][0] == "elsewhere"]
                if again:
                    left.append(Task(tuple(again), task.trains and again[0] == task.calls[0]))
            for call, (what, took) in outcomes.items():
                if what != "elsewhere":
                    board.ended(call, what, took)
        board.show()
        if waiting and not ended:
            time.sleep(EVERY)
    return left
