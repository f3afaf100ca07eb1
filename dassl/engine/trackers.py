"""Trackers: where the scalars, settings and results of a run are written, named by TRAIN.TRACKERS.

TensorBoard's files lie in the run folder. Weights & Biases and MLflow are used through their own
packages and their own environment variables (``WANDB_MODE``, ``WANDB_PROJECT``,
``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``); a resumed run goes on in the run that it began
there, whose number a file in the run folder keeps. A tracker that fails is left out from then on,
with one line, and the training goes on.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

from dassl.config import clean_cfg, leaves, optional
from dassl.utils import SettingError, check_availability, mkdir_if_missing, print_detail
from dassl.utils.random_state import get_random_state, set_random_state
from support.files import write_text

from .build import TRAINER_REGISTRY, config_node

__all__ = ["TRACKERS", "Trackers", "open_trackers", "run_name", "tracker_names"]

#: project of Weights & Biases and experiment of MLflow, unless the environment names another
PROJECT = "few-shot-clip"
#: folders at the end of a path that make a run's name
NAME_PARTS = 7
#: seconds to wait for a service at the start of a run and at its end
START_S, FINISH_S = 30, 120
#: bounds of an MLflow server: characters of a setting, settings in a request
LONGEST_PARAM, MOST_PARAMS = 6000, 100


class Tracker(Protocol):
    """What a tracker can do."""

    #: name of the package that it needs, as it is imported
    package: str

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Write one scalar."""

    def add_result(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics of the last test, as the result of the run."""

    def flush(self) -> None:
        """Write what is left, before a checkpoint is saved."""

    def close(self) -> None:
        """Write what is left, and end."""


class TensorBoard:
    """TensorBoard's files in the folder ``tensorboard`` of the run folder.

    Args:
        log_dir: where.
        purge_step: step that the run goes on at; what earlier files hold from there on is hidden.
    """

    package = "tensorboard"

    def __init__(self, log_dir: str, purge_step: int | None, **_: object) -> None:
        # TensorBoard takes seconds to import, and only training needs it.
        from torch.utils.tensorboard import SummaryWriter

        print_detail(f"Initialize tensorboard (log_dir={log_dir})")
        mkdir_if_missing(log_dir)
        self.writer = SummaryWriter(log_dir=log_dir, purge_step=purge_step)

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        self.writer.add_scalar(tag, value, step)

    def add_result(self, metrics: Mapping[str, float]) -> None:
        """Do nothing: the scalars of the test are there already."""

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases (wandb.ai), of one process or of several beside each other.

    Args:
        folder: run folder.
        name: name of the run.
        config: its settings.
        purge_step: step that the run goes on at; 0 begins a new one.
    """

    package = "wandb"

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        purge_step: int | None,
        **_: object,
    ) -> None:
        import wandb

        identity = _identity(folder / ".wandb-run", bool(purge_step))
        # "create_new": seeds that train together have a run each
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder),
            id=identity or secrets.token_hex(4),
            name=name,
            config=dict(config),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                finish_timeout=FINISH_S,
                finish_timeout_raises=True,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", START_S)),
            ),
        )
        write_text(f"{self.run.id}\n", folder / ".wandb-run")
        # scalars of a test come at a step that others have passed: the step is a value of its own
        self.run.define_metric("*", step_metric="step")
        shown = self.run.url or f"{self.run.settings.sync_dir} (offline: wandb sync uploads it)"
        print(f"Weights & Biases: {shown}")

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        self.run.log({tag: value} if step is None else {tag: value, "step": step})

    def add_result(self, metrics: Mapping[str, float]) -> None:
        self.run.summary.update(dict(metrics))

    def flush(self) -> None:
        """Do nothing: a process of its own writes."""

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow; without ``MLFLOW_TRACKING_URI`` in MLflow's own default place.

    Args:
        folder: run folder.
        name: name of the run.
        config: its settings.
        purge_step: step that the run goes on at; 0 begins a new one.
    """

    package = "mlflow"
    #: scalars that are sent at a time
    AT_ONCE = 200

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        purge_step: int | None,
        **_: object,
    ) -> None:
        # its own patience is minutes for each request, which the training would wait for
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(START_S))
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        self.pending: list[Any] = []

        file = folder / ".mlflow-run"
        identity = _identity(file, bool(purge_step))
        if identity:
            self.run_id = identity
            self.client.update_run(identity, status="RUNNING")
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self.client.create_experiment(experiment)
            self.run_id = self.client.create_run(number, run_name=name).info.run_id
            write_text(f"{self.run_id}\n", file)
            params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in config.items()]
            for first in range(0, len(params), MOST_PARAMS):
                self.client.log_batch(self.run_id, params=params[first : first + MOST_PARAMS])
        print(f"MLflow: run {self.run_id}")

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        self.pending.append(self.metric(tag, value, int(1000 * time.time()), step or 0))
        if len(self.pending) >= self.AT_ONCE:
            self.flush()

    def add_result(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.add_scalar(f"result/{name}", value)

    def close(self) -> None:
        self.flush()
        self.client.set_terminated(self.run_id)

    def flush(self) -> None:
        pending, self.pending = self.pending, []
        self.client.log_batch(self.run_id, metrics=pending)


#: name in TRAIN.TRACKERS -> tracker
TRACKERS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def tracker_names(setting: str) -> list[str]:
    """Read TRAIN.TRACKERS: names with commas between them, or "" for no tracker.

    Raises:
        ValueError: a name is unknown; the nearest known one is suggested.
        SettingError: the package of a tracker is not installed.
    """
    names = [name.strip() for name in setting.split(",") if name.strip()]
    for name in names:
        check_availability(name, list(TRACKERS), "TRAIN.TRACKERS")
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise SettingError(
                f"TRAIN.TRACKERS {name} needs the package {package}, which is not installed: "
                "pip install -r requirements-trackers.txt, or leave the name out"
            )
    return list(dict.fromkeys(names))


def run_name(cfg: Any) -> str:
    """Return a name that says what a run is: the end of its output folder.

    Where it does not name the method, it is data set, method, seed and the last folder.
    """
    path = PurePath(cfg.OUTPUT_DIR)
    parts = [part for part in path.parts if part not in (path.anchor, "output")][-NAME_PARTS:]
    if cfg.TRAINER.NAME in parts:
        return "/".join(parts)
    seed = f"seed{cfg.SEED}" if cfg.SEED >= 0 else "unseeded"
    return "/".join((cfg.DATASET.NAME, cfg.TRAINER.NAME, seed, path.name))


def open_trackers(cfg: Any, log_dir: str, purge_step: int | None = None) -> Trackers:
    """Open the trackers of a run.

    Args:
        cfg: its configuration; TensorBoard alone is opened for a trainer without one.
        log_dir: folder of TensorBoard's files, in the run folder.
        purge_step: step that the run goes on at.
    """
    if cfg is None:
        return Trackers(["tensorboard"], log_dir=log_dir, purge_step=purge_step)
    shown = cfg.clone()
    shown.defrost()
    trainer = cfg.TRAINER.NAME
    clean_cfg(shown, trainer, config_node(trainer) if trainer in TRAINER_REGISTRY else None)
    return Trackers(
        tracker_names(optional(cfg, "TRAIN.TRACKERS")),
        log_dir=log_dir,
        purge_step=purge_step,
        folder=Path(cfg.OUTPUT_DIR),
        name=run_name(cfg),
        config=dict(leaves(shown)),
    )


class Trackers:
    """The trackers of a run; one that fails is closed to the run, which goes on.

    Args:
        names: of TRACKERS.
        arguments: of the trackers.
    """

    def __init__(self, names: Sequence[str], **arguments: Any) -> None:
        self.trackers: dict[str, Tracker] = {}
        state = get_random_state()  # packages may draw
        for name in names:
            self._try(name, lambda name=name: self._start(name, arguments))
        set_random_state(state)

    def _start(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.trackers[name] = TRACKERS[name](**arguments)

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Write one scalar to all trackers."""
        self._each(lambda tracker: tracker.add_scalar(tag, value, step))

    def add_result(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics of the final test to all trackers."""
        self._each(lambda tracker: tracker.add_result(metrics))

    def flush(self) -> None:
        """Have all trackers write what is left."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Close all trackers."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            self._try(name, lambda tracker=tracker: act(tracker))

    def _try(self, name: str, act: Any) -> None:
        try:
            act()
        except Exception as error:  # whatever a service or its package raises
            if name == "tensorboard":  # files of this run: their disk is the run's disk
                raise
            self.trackers.pop(name, None)
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"Note: {name} takes no more of this run, which continues: {text}")


def _identity(file: Path, goes_on: bool) -> str | None:
    """Return what a file keeps of the run in a service that this run goes on with, if it does."""
    return file.read_text("utf-8").strip() if goes_on and file.is_file() else None
