"""A sweep from Python, as scripts/all.sh makes it."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from scripts.run import FAILS, ROOT, absolute_folders, lacking_data, run_script
from support.hints import nearest, refuse_key

from .board import Board
from .cluster import VARIABLES
from .gpus import places, visible_gpus
from .plan import Asked, Call, check_settings, plan, words
from .runner import Runner, tasks_of
from .survey import Costs, Found, describe, shortage, survey

EXECUTORS = ("local", "slurm", "debug")
#: variables that a sweep takes, or passes on to its runs
NAMES = (*VARIABLES, "PROTOCOL", "TOGETHER", "JOBS", "CUDA_VISIBLE_DEVICES")


@dataclass
class Result:
    """What a sweep came to.

    ``found`` is what was found of every call beforehand; ``counts`` are the numbers of runs by what
    became of them (``sweep.board.OUTCOMES``), empty after a dry run; ``failures`` say why runs
    failed, one line each.
    """

    found: dict[Call, Found]
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The counts as text."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)


def _text(value: object) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)


def _check_names(variables: Iterable[str]) -> None:
    names = [name.lower() for name in NAMES]
    for name in variables:
        if name not in names:
            own = list(inspect.signature(sweep).parameters)[:-1]
            raise TypeError(f"sweep() takes no {name!r}{nearest(name, [*own, *names])}")


def _refuse_keys(asked: Asked) -> None:
    """Check that the lists hold no config key, as where a list was left out in front of the pairs.

    Raises:
        ValueError: one does; shows the command that was meant.
    """
    lists = [asked.methods, asked.datasets, asked.seeds]
    for index, place in enumerate(("METHOD", "DATASETS", "SEEDS")):
        # what stands there and behind it are the pairs, and empty lists take their defaults
        meant = [*lists[:index], *[""] * (3 - index), *filter(None, lists[index:]), *asked.opts]
        usage = (
            "KEY VALUE pairs come behind METHOD DATASETS SEEDS, of which the latter two may be "
            f"empty words: all.sh {shlex.join(meant) if index else 'METHOD ...'}"
        )
        for word in words(lists[index]):
            refuse_key(word, place, usage)


@contextlib.contextmanager
def _in_repository() -> Iterator[None]:
    """Be in the repository, and let SIGTERM end this process in the way of an exception."""
    before, handler = Path.cwd(), None
    os.chdir(ROOT)
    if threading.current_thread() is threading.main_thread():
        # Python would otherwise end here at once, and leave the runs behind.
        handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        os.chdir(before)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def sweep(
    methods: str | Sequence[str],
    datasets: str | Sequence[str] = "",
    seeds: str | Sequence[int | str] = "",
    opts: Sequence[str] = (),
    *,
    executor: str | None = None,
    cluster: str | Path | None = None,
    retries: int | None = None,
    dry_run: bool = False,
    wait: bool = True,
    **variables: object,
) -> Result:
    """Make all runs of a protocol that are not finished: ``scripts/all.sh`` from Python.

    Args:
        methods, datasets, seeds: what to run; data sets and seeds have the defaults of ``all.sh``.
        opts: KEY VALUE pairs for all runs, one after the other.
        executor: ``local``, on this machine; ``slurm``, as jobs of a cluster; ``debug``, as such
            jobs would, but in this process, one by one. EXECUTOR, else ``local``, where not given.
        cluster: YAML file with the settings of the jobs; CLUSTER where not given.
        retries: how often a run that fails is tried again; RETRIES, else 1, where not given.
        dry_run: print the plan only.
        wait: whether to wait for the jobs of a cluster.
        variables: what ``all.sh`` reads from the environment, in lower case: ``protocol``,
            ``shots``, ``source``, ``jobs``, ``jobs_per_gpu``, ``data``, ``output``, ``cfg``,
            ``tag``, ... Those not given are taken from the environment. A list stands for its
            words, True for 1.

    Raises:
        TypeError: for a variable that there is not.
        ValueError: for what cannot be, before anything runs.
        KeyboardInterrupt, SystemExit: the user or the system ends it; so are the runs on this
            machine, which save.
    """
    _check_names(variables)
    given = {
        name.upper(): str(int(value)) if isinstance(value, bool) else _text(value)
        for name, value in variables.items()
        if value is not None
    }
    env = absolute_folders({"PYTHON": sys.executable, **os.environ, **given})
    asked = SimpleNamespace(
        methods=_text(methods), datasets=_text(datasets), seeds=_text(seeds), opts=tuple(opts)
    )
    _refuse_keys(asked)
    chains = plan(asked, env)
    executor = executor or env.get("EXECUTOR") or "local"
    if executor not in EXECUTORS:
        names = " ".join(EXECUTORS)
        raise ValueError(
            f"no EXECUTOR {executor!r}; there are: {names}{nearest(executor, EXECUTORS)}"
        )
    text = str(retries) if retries is not None else env.get("RETRIES") or "1"
    if not text.isdecimal():
        raise ValueError(f"RETRIES must be a whole number from 0 on, not {text!r}")
    places(env, [])  # checked before nvidia-smi is asked
    cluster = cluster or env.get("CLUSTER") or None
    cluster = cluster and Path(cluster).absolute()  # before it is in the repository
    if cluster and executor == "local":
        raise ValueError(
            f"EXECUTOR=local, this machine, has no use for the settings of jobs in {cluster}: "
            "choose --executor slurm or debug, or leave out --cluster and CLUSTER"
        )
    shows_only = dry_run or env.get("DRY_RUN") == "1"
    with _in_repository():
        check_settings(chains, env | {"DRY_RUN": "1"} if shows_only else env)
        stems = {call[2] for chain in chains for call in chain.calls}
        warnings = lacking_data(stems, env) if shows_only else []
        if executor == "local":
            on_cpu = dict(zip(asked.opts[::2], asked.opts[1::2], strict=False)).get("USE_CUDA")
            gpus = [] if str(on_cpu).lower() in ("false", "0") else visible_gpus(env)
            here = places(env, gpus)
            where = f"on GPU {', '.join(gpus)}" if gpus else "on the CPU"
            at_once = len(here)
        else:
            from .cluster import read_cluster, require_submitit

            if executor == "slurm" and not cluster:
                raise ValueError(
                    "EXECUTOR=slurm needs the settings of the jobs: --cluster FILE, a copy of "
                    "configs/clusters/example.yaml"
                )
            try:
                require_submitit()
            except ValueError as error:
                if not shows_only:
                    raise
                warnings.append(str(error))
            if shows_only and executor == "slurm" and shutil.which("srun") is None:
                warnings.append("there is no srun here, as on the login node of a SLURM cluster")
            settings = read_cluster(cluster)
            at_once = settings.parallel if executor == "slurm" else 1
            where = "as jobs of SLURM" if executor == "slurm" else "in this process"
        if env.get("DRY_RUN") == "1":
            for chain in chains:
                for method, script, *rest in chain.calls:
                    run_script(method, script, rest, env, warns=False)
            dry_run = True
        elif not dry_run and (data := env.get("DATA")) and not Path(data).is_dir():
            raise ValueError(f"DATA is {data}, which is no folder: correct it, or create it")
        found = survey(chains, env | {"DRY_RUN": "1"} if shows_only else env)
        costs = Costs(found)
        # what a dry run is for, unless that is the commands
        out = sys.stdout if dry_run and env.get("DRY_RUN") != "1" else sys.stderr
        output = Path(env.get("OUTPUT") or ROOT / "output")
        print(describe(found, costs, at_once, where), file=out, flush=True)
        if lacking := shortage(found, output):
            print(f"Note: {lacking}", file=out, flush=True)
        for warning in warnings:
            print(f"{FAILS}{warning}", file=sys.stderr, flush=True)
        if dry_run:
            return Result(found)

        logs = output / "all"
        logs.mkdir(parents=True, exist_ok=True)
        tasks = tasks_of(chains, found)
        left = [call for task in tasks for call in task.calls]
        board = Board(left, len(found) - len(left), costs, at_once)
        result = Result(found, board.counts)
        try:
            if executor == "local":
                runner = Runner(logs, env, here, board, int(text))
                result.failures = runner.failures
                runner.run(tasks)
            else:
                from .cluster import run_jobs

                result.failures = run_jobs(
                    executor, settings, tasks, logs, env, board, int(text), wait
                )
        except (KeyboardInterrupt, SystemExit):
            board.close()
            kept = (
                "the jobs keep running (scancel ends them)"
                if executor == "slurm"
                else "finished runs and the last checkpoints of the others are kept below "
                f"{logs.parent}"
            )
            print(
                f"stopped ({result.summary or 'no run had ended'}): {kept}; the same command "
                "continues from there",
                file=sys.stderr,
            )
            raise
        finally:
            board.close()
    return result
