"""Run one protocol of one method; what scripts/<method>/<protocol>.sh, which are all alike, call.

{scripts}

A SEED may be a list with commas, 1,2,3: its seeds are trained together, in one process that runs
the frozen CLIP once for all of them (docs/performance.md), and tested one by one.

After these, all take KEY VALUE pairs of the config; MAX_EPOCH stands for OPTIM.MAX_EPOCH.
docs/protocols.md has the output folders.

From the environment:
  DATA     folder that holds the data sets (default: data/); docs/datasets.md has their layout,
           docs/own_images.md that of your own images
  OUTPUT   results (default: output/)
  SHOTS    images per class where it is no argument (default: 16); all for every training image,
           as the argument may be
  SOURCE   data set that transfer starts from (default: {source})
  CFG      another file of configs/trainers/<Trainer>/, without .yaml, or upstream's name of it
  TAG      names the results of KEY VALUE pairs (default: the pairs; empty: no folder of their own)
  WEIGHTS  test the published weights in this folder, not a training of one's own; layout:
{published}
  SUBFOLDER  one more level of the folders below <cfg>_<k>shots
  PYTHON   interpreter (default: that of the active environment, else .venv, set up if need be)
  DRY_RUN  1: print the commands and run nothing
  BUSY     what to do with a run that another process is doing, also on another machine: wait for
           it (default), or skip it and end with status {unfinished}

A finished run is skipped; an unfinished one resumes from its last checkpoint. Both have to agree
in all settings but those of how it is computed and what it prints (dassl/config/runtime.py), which
make no folder of their own either. TRAIN.EXTEND True lets a run go on to a larger OPTIM.MAX_EPOCH.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import protocols  # noqa: E402  found by the line above
from support.claims import Claim  # noqa: E402
from support.command_line import UNFINISHED  # noqa: E402
from support.command_line import run as run_command  # noqa: E402

if TYPE_CHECKING:
    from results.finished import Comparison, LastStart
    from scripts.planning import Plan, Run

# What is not of the standard library is imported inside the functions: --help is given without.

#: starts of the lines that a call prints when it only skips
FINISHED, NOTE, BUSY = "finished already: ", "note: ", "busy: "
#: start of what a dry run says of data that are not there
FAILS = "warning: without --dry-run or DRY_RUN it would fail: "
#: seconds until it is looked again at runs that another process is doing
LOOK_AGAIN = 1.0


def help_text() -> str:
    """Return what --help prints."""
    shown = [script for script in protocols.scripts().values() if script.does]
    lines = {f"scripts/<method>/{s.name}.sh {s.arguments}": s.does for s in shown}
    width = max(map(len, lines))
    places: dict[str, list[str]] = {}
    for script in shown:
        if script.published:
            places.setdefault(script.published, []).append(f"{script.name}.sh")
    published = [f"{place} for {', '.join(names)}" for place, names in places.items()]
    return __doc__.strip().format(
        scripts="\n".join(f"  {line:{width}}   {does}" for line, does in lines.items()),
        source=protocols.SOURCE,
        published="\n".join(" " * 11 + p.format(seed="<s>", shots="<k>") for p in published),
        unfinished=UNFINISHED,
    )


def absolute_folders(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the folders that it names relative to this one made absolute."""
    named = {name: env[name] for name in ("DATA", "OUTPUT", "WEIGHTS") if env.get(name)}
    return {**env, **{name: str(Path.cwd() / folder) for name, folder in named.items()}}


def lacking_data(stems: Iterable[str], env: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the folders of data sets, for a warning; nothing is read or made.

    Args:
        stems: files of ``configs/datasets/``.
        env: environment; folders in it are absolute, or relative to the repository.
    """
    data = env.get("DATA") or "data"
    if env.get("DATA") and not Path(data).is_dir():
        return [f"DATA is {data}, which is no folder"]
    lacking = []
    for stem in sorted(set(stems) - set(protocols.GENERATED)):
        try:
            from datasets.preparation.inspection import locate

            locate(stem, ROOT / data)
        except ImportError:  # PYTHON, which the runs take, may be another that has it
            return []
        except (OSError, ValueError) as error:
            lacking.append(str(error))
    return lacking


def run_script(
    method: str, script: str, words: Sequence[str], env: Mapping[str, str], warns: bool = True
) -> int:
    """Run a script, or with DRY_RUN=1 print its commands.

    Args:
        method: folder of scripts, in any case, or registry name of a trainer.
        script: of one of the protocols.
        words: its words.
        env: environment; folders in it are absolute, or relative to the repository.
        warns: of a dry run: whether to say what data are not there.

    Returns:
        Exit status: 0, or that of the first call of ``train.py`` that failed.

    Raises:
        ValueError: for words or variables that cannot be, or a run of other settings.
    """
    from scripts.planning import plan

    planned = plan(method, script, words, env)
    for note in planned.notes:
        print(f"{NOTE}{note}", file=sys.stderr)
    if env.get("DRY_RUN") == "1":
        for run in planned.runs:
            print(shlex.join(planned.command(run, run.seeds)))
        for text in lacking_data((run.dataset for run in planned.runs), env) if warns else ():
            print(f"{FAILS}{text}", file=sys.stderr)
        return 0
    # The embedded backbone is too small to gain from threads, and loses much where cores are busy.
    if planned.config.startswith("tiny") and not env.get("OMP_NUM_THREADS"):
        env = {**env, "OMP_NUM_THREADS": "1"}
    if env.get("BUSY") not in (None, "", "wait", "skip"):
        raise ValueError(f"BUSY is {env['BUSY']!r}: use wait or skip")
    skip = env.get("BUSY") == "skip"
    waiting, said = list(planned.runs), set()
    while waiting:
        busy = []
        for run in waiting:
            outcome = do(planned, run, env)
            if isinstance(outcome, str):
                busy.append(run)
                if run not in said:
                    print(f"{BUSY}{outcome}{'' if skip else '; waiting for it'}", flush=True)
                    said.add(run)
            elif outcome:
                return outcome
        if busy and skip:
            return UNFINISHED
        if len(busy) == len(waiting):
            time.sleep(LOOK_AGAIN)
        waiting = busy
    return 0


def do(plan: Plan, run: Run, env: Mapping[str, str]) -> int | str:
    """Do what is left of a run, unless another process is doing it.

    Returns:
        Exit status, or text that says who is doing it.

    Raises:
        ValueError: it cannot be done.
    """
    weights = find_weights(plan, run)
    left = [seed for seed in run.seeds if not is_done(plan, run, seed, weights)]
    if not left:
        return 0
    with Claim([run.folder_of(seed) for seed in left], lose) as claim:
        if claim.holder is not None:
            return f"{run.folder_of(','.join(left))} is done by {claim.holder}"
        # another process may have ended it in the meantime
        weights = find_weights(plan, run)
        left = [seed for seed in left if not is_done(plan, run, seed, weights)]
        return call(plan.command(run, left), env, claim) if left else 0


def lose() -> None:
    """End this call, and with it what it runs: another machine took the run over."""
    print(
        "this machine was out of touch for so long that another one took the run over; ending it",
        file=sys.stderr,
        flush=True,
    )
    os.kill(os.getpid(), signal.SIGTERM)


def state_of(
    plan: Plan, run: Run, seed: str, weights: Path | None
) -> tuple[Literal["new", "started", "finished"], str, float | None]:
    """Return how far a seed of a run has come.

    Returns:
        Its state; what to say of how a finished run was computed; its seconds, if known.

    Raises:
        ValueError: the folder has results of other settings or images.
    """
    folder = run.folder_of(seed)
    last = last_start_of(plan, folder, run.dataset, run.trains)
    if last is None:
        return "new", "", None
    if not last.finished:
        return "started", "", None
    if run.weights and not last.tests(weights, run.weights.folder.removeprefix(plan.output)):
        return "new", "", None
    found = compare(plan, folder, last, run.dataset, run.pairs)
    return ("finished" if found.kind == "same" else "started"), found.reason, last.seconds


def is_done(plan: Plan, run: Run, seed: str, weights: Path | None) -> bool:
    """Return whether nothing is left to do for a seed of a run, and print it if so.

    Raises:
        ValueError: the folder has results of other settings or images.
    """
    state, reason, _ = state_of(plan, run, seed, weights)
    if state != "finished":
        return False
    print(f"{FINISHED}{run.folder_of(seed)}{', with ' + reason if reason else ''}", flush=True)
    return True


def last_start_of(plan: Plan, folder: str, dataset: str, trains: bool) -> LastStart | None:
    """Return the last start of the run in a folder; None if there was none.

    Raises:
        ValueError: it took other images.
    """
    from results.finished import read_last_start

    last = read_last_start(Path(folder), trains)
    # imagefolder.yaml leaves it to DATA whose images are meant; others have a name of their own
    if last and dataset == "imagefolder" and last.facts.get("root") != plan.data:
        raise ValueError(
            f"{folder} has results of {last.facts.get('root')}, not of {plan.data}: copy "
            "configs/datasets/imagefolder.yaml to a name for these images (docs/own_images.md)"
        )
    return last


def compare(
    plan: Plan, folder: str, last: LastStart, dataset: str, pairs: Sequence[str]
) -> Comparison:
    """Return how a finished run relates to one of this plan, with these pairs of the protocol.

    Raises:
        ValueError: it is another run.
    """
    found = last.compared_to(plan.settings(dataset, pairs))
    if found.kind == "other":
        raise ValueError(f"{folder} holds a finished run with {found.reason}")
    return found


def find_weights(plan: Plan, run: Run) -> Path | None:
    """Return the file of the weights that a run tests; None if it tests none.

    Raises:
        ValueError: there is none, or it is of other settings.
    """
    if run.weights is None:
        return None
    folder, trained_by = run.weights.folder, run.weights.trained_by
    if trained_by:
        last = last_start_of(plan, folder, plan.trained_on, trains=True)
        if last is None or not last.finished:
            raise ValueError(
                f"no finished training in {folder}: first run scripts/{plan.method.name}/"
                f"{trained_by.name}.sh with the same settings{source_hint(plan)}"
            )
        compare(plan, folder, last, plan.trained_on, run.weights.pairs)
    name = f"model.pth.tar-{plan.epoch or '*'}"
    found = glob.glob(f"{glob.escape(folder)}/**/{name}", recursive=True)
    if not found and not trained_by:
        raise ValueError(f"no {name} below {folder}: WEIGHTS must name the folder above it")
    # which of several is tested may depend on all of them: the newest tells whether one is new
    return max(map(Path, found), key=lambda path: path.stat().st_mtime_ns, default=None)


def source_hint(plan: Plan) -> str:
    """Return what to say where SOURCE may have been forgotten: data sets with trainings."""
    if not plan.script.transfers or plan.source:
        return ""
    from scripts.methods import DATASETS, stems

    there = [d for d in stems(DATASETS) if Path(plan.output, d, plan.method.trainer).is_dir()]
    shown = f" (there are trainings on: {' '.join(there)})" if there else ""
    return f"; SOURCE is not set, so that it is {protocols.SOURCE}{shown}"


def _with_its_parent() -> Callable[[], None] | None:
    """Return what a new process calls to get SIGTERM when its parent ends; None where it cannot."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def call(command: Sequence[str], env: Mapping[str, str], claim: Claim) -> int:
    """Run a command in the repository, and return its exit status, 128 + n where signal n ended it.

    Ctrl-C reaches it by itself, and it ends as it sees fit; SIGTERM is passed on, and so is SIGUSR1
    as SIGTERM. Where this
    process is killed, the command gets SIGTERM too.

    Args:
        command: its words.
        env: its environment.
        claim: to its folder, which it then holds as well.
    """
    process, to_end = None, False

    def end(*_: object) -> None:
        nonlocal to_end
        to_end = True
        if process:
            process.terminate()

    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: end}
    if hasattr(signal, "SIGUSR1"):  # as schedulers warn
        handlers[signal.SIGUSR1] = end
    # what is ignored stays so, in the command as well
    before = {n: h for n in handlers if (h := signal.getsignal(n)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handlers[number])
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=dict(env), preexec_fn=_with_its_parent())
        if to_end:  # before there was a process to pass it on to
            process.terminate()
        claim.add_process(process.pid)
        claim.keep()
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line METHOD PROTOCOL ARGUMENTS.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: that of :func:`run_script`, or 2 for what cannot be run.
    """
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        for number, word in enumerate(words[:3]):
            if word in ("-h", "--help"):
                if number == 2:
                    print(f"{protocols.find_script(words[1])[1].usage(words[0])}\n")
                print(help_text())
                return 0
        if len(words) < 2:
            raise ValueError("usage: run.sh METHOD PROTOCOL ARGUMENTS")
        env = absolute_folders({"PYTHON": sys.executable, **os.environ})
        os.chdir(ROOT)
        return run_script(words[0], words[1], words[2:], env)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
