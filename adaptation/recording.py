"""The record of a run of ``train.py`` and its whole config: what they hold, when they are written.

``config.yaml`` lies beside the record. ``--config-file`` takes it, for the same run again.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from dassl.config import CfgNode, clean_cfg, decoded
from dassl.engine import TRAINER_REGISTRY, TrainerBase
from dassl.engine.going_on import saved_in
from dassl.engine.run_notes import run_facts
from dassl.utils import collect_env_info
from results import predictions, record
from support.code_state import git_state
from support.command_line import ROOT, Unfinished
from support.files import remove_leftovers, write_text

from .predictions import check_halves, keep_predictions
from .version import __version__

#: file in a run folder that holds its whole config
CONFIG_FILE = "config.yaml"


def keep_record(
    trainer: TrainerBase, cfg: CfgNode, arguments: Mapping[str, Any], given: Mapping[str, str]
) -> None:
    """Have a run write its config when it starts, and its record when it ends.

    Any older record is deleted at the start. A test in the folder of a training leaves the
    training's config there.

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
            # the texts, where the config names files
            "templates": list(getattr(trainer, "given_templates", ())),
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

    def begin() -> None:
        record.forget(cfg.OUTPUT_DIR)
        predictions.forget(cfg.OUTPUT_DIR)
        if not (arguments["eval_only"] and saved_in(cfg.OUTPUT_DIR)):
            write_text(config_text(cfg, arguments), Path(cfg.OUTPUT_DIR, CONFIG_FILE))

    trainer.run_notes.commit = git["commit"] if git else None
    trainer.run_notes.on_start = begin
    trainer.run_notes.on_end = write


def config_text(cfg: CfgNode, arguments: Mapping[str, Any]) -> str:
    """Return a config as the text of a YAML file that ``--config-file`` takes.

    Args:
        cfg: of a run; settings of other methods are left out.
        arguments: name -> value of all arguments of its command line. Those that are no config keys
            stand in a comment, as a command that does the same again.
    """
    words = ["--config-file", CONFIG_FILE, "--output-dir", "ELSEWHERE"]
    for name in ("trainer_file", "extend_cfg", "model_dir", "load_epoch"):
        given = arguments[name] if isinstance(arguments[name], list) else [arguments[name]]
        option = f"--{name.replace('_', '-')}"
        words += [word for value in given if value not in (None, "") for word in (option, value)]
    for name in ("eval_only", "untrained", "deterministic"):
        words += [f"--{name.replace('_', '-')}"] if arguments[name] else []
    # a line break in a path would end the comment
    again = " ".join(shlex.join(map(str, words)).splitlines())
    return (
        f"# the whole config of a run of version {__version__}; the same again:\n"
        f"# python train.py {again}\n"
        f"{yaml.safe_dump(_plain(_read_by_method(cfg)), sort_keys=False, allow_unicode=True)}"
    )


def _plain(value: Any) -> Any:
    """Return a value of a config as YAML knows it, so that it is read back as it is."""
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return yaml.safe_load(yaml.safe_dump(value))  # tuples in it are lists then
    # a text that reads as a number or the like would become one: it is put in quotes once more
    return repr(value) if isinstance(value, str) and decoded(value) != value else value


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
