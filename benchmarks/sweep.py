"""Runs on the embedded data, many settings side by side, results as JSON lines.

A base-to-new run trains on the base classes, tests them, and tests the new classes with the same
learner, as ``scripts/<method>/base2new_train.sh`` and ``base2new_test.sh`` do, in one process; a
few-shot run trains and tests all classes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """One run: what is trained on what, and the config pairs that differ from the file's.

    ``label`` names the setting in tables; ``pairs`` are config keys and values in turn;
    ``protocol`` is ``base2new`` or ``fewshot``; ``scales`` multiply start values, by the names of
    the learner's tensors.
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


def do_run(run: Run, root: str) -> dict[str, object]:
    """Do a run; return accuracies in percent (``base``, ``new`` and their ``hm``, or ``all``).

    Trainable ``parameters`` and ``seconds`` of the run come with them.

    Args:
        run: the setting.
        root: data root.
    """
    import torch

    import datasets
    import trainers
    from dassl.config import get_cfg_default
    from dassl.engine import build_trainer
    from dassl.utils import count_num_param, set_random_seed

    torch.set_num_threads(1)
    start = time.perf_counter()
    parts = ("base", "new") if run.protocol == "base2new" else ("all",)
    accuracy = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for classes in parts:
            cfg = get_cfg_default()
            trainers.extend_cfg(cfg)
            datasets.extend_cfg(cfg)
            cfg.merge_from_file(str(ROOT / "configs" / "datasets" / f"{run.data}.yaml"))
            method_file = ROOT / "configs" / "trainers" / run.method / f"{run.config}.yaml"
            cfg.merge_from_file(str(method_file))
            cfg.merge_from_list(
                ["DATASET.ROOT", root, "DATASET.NUM_SHOTS", run.shots, "SEED", run.seed]
                + ["DATASET.SUBSAMPLE_CLASSES", classes, "OUTPUT_DIR", folder]
                + ["TRAINER.NAME", run.method, "VERBOSE", False]
                # a run that chooses its epoch on validation images ends with the one chosen
                + ["TEST.NO_TEST", cfg.TEST.FINAL_MODEL == "last_step"]
                + list(run.pairs)
            )
            set_random_seed(run.seed)
            with contextlib.redirect_stderr(io.StringIO()):
                trainer = build_trainer(cfg)
                for name, factor in run.scales:
                    trainer.model.learner.get_parameter(name).data.mul_(factor)
                if classes == "new":
                    trainer.load_model(folder, epoch=cfg.OPTIM.MAX_EPOCH)
                elif trainer.get_model_names():
                    try:
                        trainer.train()
                    except FloatingPointError:
                        accuracy = dict.fromkeys(parts, 0.0)
                        break
                accuracy[classes] = trainer.test()
    learner = getattr(trainer.model, "learner", None)
    parameters = count_num_param(learner) if learner is not None else 0
    if run.protocol == "base2new":
        base, new = accuracy["base"], accuracy["new"]
        accuracy["hm"] = 2 * base * new / (base + new) if base + new else 0.0
    seconds = round(time.perf_counter() - start, 1)
    setting = json.loads(json.dumps(asdict(run)))  # as the file gives it back
    return {**setting, **accuracy, "parameters": parameters, "seconds": seconds}


def sweep(runs: Iterable[Run], out: Path, root: Path, jobs: int) -> list[dict[str, object]]:
    """Do the runs that ``out`` does not hold yet, ``jobs`` at a time, and return all results.

    Results are appended as they come in, so an interrupted sweep goes on where it stopped.
    """
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    have = {_key(result) for result in done}
    wanted = list(runs)
    todo = [run for run in wanted if _key(asdict(run)) not in have]
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs) as pool, out.open("a") as file:
        futures = [pool.submit(do_run, run, str(root)) for run in todo]
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            result = future.result()
            done.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
    keys = {_key(asdict(run)) for run in wanted}
    return [result for result in done if _key(result) in keys]


def _key(result: dict[str, object]) -> str:
    fields = ("label", "method", "data", "seed", "pairs", "config", "shots", "protocol")
    # results from before there were scales had none
    return json.dumps([*(result[field] for field in fields), result.get("scales", [])])


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
