"""The record of a run of ``train.py``: its content, and when it is written."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dassl.config import CfgNode, clean_cfg
from dassl.engine import TRAINER_REGISTRY, TrainerBase
from dassl.engine.run_notes import run_facts
from dassl.utils import collect_env_info
from results import predictions, record
from support.code_state import git_state
from support.command_line import ROOT, Unfinished
from support.files import remove_leftovers

from .predictions import check_halves, keep_predictions
from .version import __version__


def keep_record(
    trainer: TrainerBase, cfg: CfgNode, arguments: Mapping[str, Any], given: Mapping[str, str]
) -> None:
    """Have a run delete any older record when it starts, and write its own when it ends.

    Args:
        trainer: about to train or test; with ``--eval-only``, its weights are loaded.
        cfg: the config that it was built from.
        arguments: name -> value of all arguments of the command line.
        given: config key -> the file or the option that set it.

    Raises:
        ValueError: ``TEST.BASE_AND_NEW`` does not fit the other settings.

    At its end the run raises Unfinished where its record cannot be written.
    """
    check_halves(cfg)
    remove_leftovers(cfg.OUTPUT_DIR)
    started, git = _now(), git_state(ROOT)
    model_dir, load_epoch = arguments["model_dir"] or None, arguments["load_epoch"]
    trained = record.identity_in(model_dir) if model_dir else None

    def write() -> None:
        facts = run_facts(trainer)
        model = facts["model"] | {"model_dir": model_dir, "load_epoch": load_epoch}
        model["trained"] = trained
        if trained and load_epoch is None:
            model["chosen_on"] = trained["chosen_on"]
        keep_predictions(trainer, facts)
        content = {
            "method": cfg.TRAINER.NAME,
            "eval_only": arguments["eval_only"],
            "seed": cfg.SEED if cfg.SEED >= 0 else None,
            "seeds_together": arguments["seeds"],
            **facts,
            "model": model,
            "started": started,
            "ended": _now(),
            "host": platform.node(),
            "versions": {"library": __version__, **facts["versions"]},
            "git": git,
            "environment": collect_env_info(),
            "config": _read_by_method(cfg),
            "given": given,
            "arguments": arguments,
        }
        try:
            record.write(cfg.OUTPUT_DIR, content)
        except OSError as error:
            raise Unfinished(
                f"cannot write {Path(cfg.OUTPUT_DIR, record.FILE)} ({error.strerror}): make room, "
                "or correct what hinders it. The same command tests again and writes it"
            ) from error
        if Path(cfg.OUTPUT_DIR, predictions.FILE).is_file():
            run = shlex.quote(cfg.OUTPUT_DIR)
            print(f"What it gets right and wrong: python -m tools.inspect_run {run}")
        if arguments["eval_only"] and facts["result"]:
            _track_test(trainer, cfg.OUTPUT_DIR, facts["result"])

    def forget() -> None:
        record.forget(cfg.OUTPUT_DIR)
        predictions.forget(cfg.OUTPUT_DIR)

    trainer.run_notes.commit = git["commit"] if git else None
    trainer.run_notes.on_start = forget
    trainer.run_notes.on_end = write


def _track_test(trainer: TrainerBase, folder: str, result: Mapping[str, Any]) -> None:
    """Write the result of a run that only tests where a training's is written, as step 0.

    Args:
        trainer: that has tested.
        folder: the run's.
        result: of ``run_facts``.
    """
    try:
        trainer.init_writer(str(Path(folder, "tensorboard")))
        for name, value in result["metrics"].items():
            if isinstance(value, float | int):
                trainer.write_scalar(f"{result['split']}/{name}", value, 0)
        trainer.close_writer()
    except OSError as error:  # the record has it
        print(f"Note: not in TensorBoard: {error}", file=sys.stderr)


def _now() -> str:
    """Return the time in ISO 8601, with the offset of the time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _read_by_method(cfg: CfgNode) -> CfgNode:
    """Return a config without other methods' settings, if the method declares its node."""
    cfg = cfg.clone()
    cfg.defrost()
    method = cfg.TRAINER.NAME
    own = getattr(TRAINER_REGISTRY.get(method), "node", None)
    if own:
        clean_cfg(cfg, method, own)
    return cfg
