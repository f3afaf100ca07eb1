"""Runs on the embedded data, many settings side by side, results as JSON lines.

A base-to-new run trains on the base classes, tests them, and tests the new classes with the same
learner, as ``scripts/<method>/base2new_train.sh`` and ``base2new_test.sh`` do, in one process; a
few-shot run trains and tests all classes; a transfer does so and tests other data sets then, as
``xd_test.sh`` and ``dg_test.sh`` do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from results.rows import harmonic
from support.command_line import add_traceback, positive
from support.files import as_text, read_bytes, write_text

if TYPE_CHECKING:
    from dassl.config import CfgNode

ROOT = Path(__file__).resolve().parent.parent
_MEND = (
    "delete the line, or restore the file as it was kept last: runs that it lacks are made again"
)


@dataclass(frozen=True)
class Run:
    """One run: what is trained on what, and the config pairs that differ from the file's.

    ``label`` names the setting in tables; ``pairs`` are config keys and values in turn;
    ``protocol`` is ``base2new``, ``fewshot`` or ``transfer``, and ``targets`` are the data sets
    that the last one tests on; ``scales`` multiply start values, by the names of the learner's
    tensors.
    """

    label: str
    method: str
    data: str
    seed: int
    pairs: tuple[object, ...] = ()
    config: str = "tiny"
    shots: int = 16
    protocol: str = "base2new"
    scales: tuple[tuple[str, float], ...] = ()
    targets: tuple[str, ...] = ()


def config_of(run: Run, data: str, classes: str, root: str, folder: str) -> CfgNode:
    """Return the config of a run on some classes of a data set.

    Args:
        run: the setting.
        data: the data set, by the name of its file.
        classes: base, new or all.
        root: data root.
        folder: for the results.
    """
    import datasets
    import trainers
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "datasets" / f"{data}.yaml"))
    cfg.merge_from_file(str(ROOT / "configs" / "trainers" / run.method / f"{run.config}.yaml"))
    cfg.merge_from_list(
        ["DATASET.ROOT", root, "DATASET.NUM_SHOTS", run.shots, "SEED", run.seed]
        + ["DATASET.SUBSAMPLE_CLASSES", classes, "OUTPUT_DIR", folder]
        + ["TRAINER.NAME", run.method, "VERBOSE", False]
        # a run that chooses its epoch on validation images ends with the one chosen
        + ["TEST.NO_TEST", cfg.TEST.FINAL_MODEL == "last_step"]
        + list(run.pairs)
    )
    return cfg


def settings_of(run: Run) -> str:
    """Return a fingerprint of the configs of a run, of what differs from the defaults."""
    import datasets
    import trainers
    from dassl.config import get_cfg_default
    from dassl.config.node import leaves

    default = get_cfg_default()
    trainers.extend_cfg(default)
    datasets.extend_cfg(default)
    known = dict(leaves(default))

    def own_of(data: str) -> dict[str, str]:
        cfg = config_of(run, data, "all", "", "")
        return {key: repr(value) for key, value in leaves(cfg) if value != known[key]}

    own: dict[str, object] = {**own_of(run.data)}
    if run.targets:
        own["targets"] = [own_of(target) for target in run.targets]
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def do_run(run: Run, root: str) -> dict[str, object]:
    """Do a run; return accuracies in percent.

    They are ``base``, ``new`` and their ``hm``, or that of ``all`` classes, and ``on`` for those on
    each target. Trainable ``parameters`` and ``seconds`` of processor time come with them.

    Args:
        run: the setting.
        root: data root.
    """
    import torch

    from dassl.engine import build_trainer
    from dassl.utils import count_num_param, set_random_seed

    torch.set_num_threads(1)
    start = time.process_time()
    halves = run.protocol == "base2new"
    trained = (run.data, "base" if halves else "all")
    others = [(run.data, "new")] if halves else [(target, "all") for target in run.targets]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        cfg = config_of(run, *trained, root, folder)
        set_random_seed(run.seed)
        trainer = build_trainer(cfg)
        for name, factor in run.scales:
            trainer.model.learner.get_parameter(name).data.mul_(factor)
        learner = getattr(trainer.model, "learner", None)
        parameters = count_num_param(learner) if learner is not None else 0
        accuracy = dict.fromkeys((trained, *others), 0.0)
        try:
            if trainer.get_model_names():
                trainer.train()
            accuracy[trained] = trainer.test()
            for data, classes in others:
                other = config_of(run, data, classes, root, folder)
                set_random_seed(run.seed)
                trainer = build_trainer(other)
                last = cfg.TEST.FINAL_MODEL == "last_step"
                trainer.load_model(folder, epoch=cfg.OPTIM.MAX_EPOCH if last else None)
                accuracy[data, classes] = trainer.test()
        except FloatingPointError:  # the loss is not finite: nothing was learned
            pass
    found: dict[str, object] = {trained[1]: accuracy[trained]}
    if halves:
        base, new = accuracy.values()
        found |= {"new": new, "hm": harmonic(base, new)}
    if run.targets:
        found["on"] = {target: accuracy[target, "all"] for target in run.targets}
    found |= {"parameters": parameters, "seconds": round(time.process_time() - start, 1)}
    return {**json.loads(_setting(run)), **found}


def _setting(run: Run) -> str:
    """Return what a file of results says of a run's setting."""
    return json.dumps({**asdict(run), "settings": settings_of(run)})


def sweep_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that sweeps.

    Args:
        description: docstring of its module, of which the help shows the first paragraph.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="data root")
    add_traceback(parser)
    return parser


def missing(runs: Iterable[Run], out: Path) -> list[Run]:
    """Return the runs that a file of results does not hold whole, or holds with another config.

    Raises:
        ValueError: a line of the file is no result; names file and line.
    """
    have = set(map(_key, _read(out)))
    return [run for run in runs if _key(json.loads(_setting(run))) not in have]


def sweep(runs: Iterable[Run], out: Path, root: Path, jobs: int) -> list[dict[str, object]]:
    """Do the runs that ``out`` does not hold yet, ``jobs`` at a time, and return all results.

    Results are appended as they come in, so an interrupted sweep goes on where it stopped.

    Raises:
        RuntimeError: runs failed; all others were done. Names them.
        ValueError: a line of the file is no result; nothing is run. Names file and line.
    """
    todo, failed = missing(runs, out), []
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    if out.exists() and not out.read_bytes().endswith(b"\n"):
        write_text(_whole_lines(out), out)
    with ProcessPoolExecutor(jobs) as pool, out.open("a") as file:
        futures = {pool.submit(do_run, run, str(root)): run for run in todo}
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            if error := future.exception():
                failed.append(f"{futures[future]}: {type(error).__name__}: {error}")
                continue
            file.write(json.dumps(future.result()) + "\n")
            file.flush()
    if failed:
        raise RuntimeError("\n".join([f"{len(failed)} of {len(todo)} runs failed:", *failed]))
    return results_of(runs, out)


def results_of(runs: Iterable[Run], out: Path) -> list[dict[str, object]]:
    """Return the results that a file holds of runs; errors as for :func:`missing`."""
    keys = {_key(json.loads(_setting(run))) for run in runs}
    return [result for result in _read(out) if _key(result) in keys]


def _whole_lines(out: Path) -> str:
    """Return the text of a file of results; a killed sweep may leave half a line, which is cut."""
    try:
        text = as_text(read_bytes(out)) if out.exists() else ""
    except ValueError as error:
        raise ValueError(f"{out}: {error}; {_MEND}") from error
    return text[: text.rfind("\n") + 1]


def _read(out: Path) -> list[dict[str, object]]:
    """Return the results that a file holds whole, those with all their accuracies.

    Raises:
        ValueError: a line is no result; names file and line.
    """
    results = []
    for number, line in enumerate(_whole_lines(out).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            result = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{out}, line {number}: {line!r:.60} is no JSON; {_MEND}") from error
        if not isinstance(result, dict):
            raise ValueError(f"{out}, line {number}: {line!r:.60} is no result of a run; {_MEND}")
        if _has_accuracies(result):
            results.append(result)
    return results


def _has_accuracies(result: dict[str, object]) -> bool:
    """Return whether a result has an accuracy in percent for everything that its run measures."""
    keys = ("base", "new", "hm") if result.get("protocol") == "base2new" else ("all",)
    targets, on = result.get("targets") or (), result.get("on") or {}
    if not isinstance(targets, list | tuple) or not isinstance(on, dict):
        return False
    found = [*map(result.get, keys), *map(on.get, targets)]
    return all(type(value) in (int, float) and 0 <= value <= 100 for value in found)


def _key(result: dict[str, object]) -> str:
    return json.dumps(
        [result.get(key) for key in (*(field.name for field in fields(Run)), "settings")]
    )


def summarise(
    results: Sequence[dict[str, object]], by: Sequence[str] = ("data", "label")
) -> list[dict[str, object]]:
    """Return mean and population deviation of base, new and HM, and the worst HM, per group.

    Args:
        results: of base-to-new runs.
        by: fields whose values make a group.
    """
    groups: dict[tuple, list[dict[str, object]]] = {}
    for result in results:
        groups.setdefault(tuple(result[field] for field in by), []).append(result)
    rows = []
    for key, members in groups.items():
        row: dict[str, object] = dict(zip(by, key, strict=True))
        for measure in ("base", "new", "hm"):
            values = [float(m[measure]) for m in members]
            row[measure] = f"{statistics.fmean(values):.1f} ± {statistics.pstdev(values):.1f}"
        row["worst hm"] = f"{min(float(m['hm']) for m in members):.1f}"
        row["runs"] = len(members)
        rows.append(row)
    return rows
