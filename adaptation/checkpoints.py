"""Checkpoints of learners: finding them, checking that they fit, reading the config in them."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from dassl.config import CfgNode, get_cfg_default, is_runtime_key, leaves
from dassl.engine import TRAINER_REGISTRY, config_node
from dassl.utils.checkpoint import BEST, NUMBERED, model_to_test
from datasets.annotations import check_name
from results import record
from support.documents import parse_yaml
from support.weight_files import check_weights

from .config import extend_cfg
from .learner import PromptLearner
from .recording import CONFIG_FILE

#: version of the learner checkpoints' layout, stored in each of them
CHECKPOINT_VERSION = 1

#: depth to which a folder is searched for runs, to name them in an error
LEVELS = 3


def checkpoint_path(directory: str, name: str, epoch: int | None) -> str:
    """Return the path of a model in a run folder.

    Args:
        directory: run folder; or the file itself, as published code of some methods saves it.
        name: folder of the model in it.
        epoch: number of the epoch; ``None`` for the model that the run was tested with: the best
            one if it was chosen on validation images, else the last one.

    Raises:
        FileNotFoundError: no such file; the text says what there is.
    """
    if osp.isfile(directory):
        return directory
    folder = osp.join(directory, name)
    if epoch is None:
        path = model_to_test(folder) or folder
    else:
        path = osp.join(folder, f"{NUMBERED}{epoch}")
    if osp.isfile(path):
        return path
    others = ", ".join(_model_folders(directory))
    if not others:
        raise FileNotFoundError(_instead_of_a_run(directory))
    if not osp.isdir(folder):
        found = f": the run holds {others}, which is of another method. Correct --trainer"
    else:
        with_models = ", ".join(_models(folder)) or "nothing"
        found = f". There is: {with_models}; correct --load-epoch"
    raise FileNotFoundError(f"No model at {path}{found}")


def find_checkpoint(run: str, epoch: int | None = None) -> str:
    """Return the path of the only model in a run folder, whatever its method.

    Args:
        run: run folder.
        epoch: as for :func:`checkpoint_path`.

    Raises:
        FileNotFoundError: no such folder or no such model; the text says what there is.
        ValueError: the run holds several models.
    """
    names = _model_folders(run)
    if not names:
        raise FileNotFoundError(_instead_of_a_run(run))
    if len(names) > 1:
        raise ValueError(f"{run} holds several models ({', '.join(names)}), not one learner")
    return checkpoint_path(run, names[0], epoch)


def bundle_instead(folder: str | Path) -> str | None:
    """Explain that a folder is a bundle and what predicts with it; None where it is none."""
    if not osp.isfile(osp.join(folder, "bundle.json")):
        return None
    return (
        f"{folder} is a bundle that tools.export wrote, not a run folder: label images with "
        f"python {osp.join(folder, 'predict.py')}, or serve it with serve.py --bundle {folder}"
    )


def _instead_of_a_run(folder: str) -> str:
    """Explain that a folder holds no model of a run, and what to do."""
    if not osp.isdir(folder):
        return f"the run folder {folder} does not exist. Train first, or correct --model-dir"
    if said := bundle_instead(folder):
        return said
    if _models(folder):
        return f"{folder} is the folder of a model; name the run folder above it"
    for depth in range(1, LEVELS + 1):
        runs = {path.parent.parent for path in Path(folder).glob("*/" * depth + f"*/{NUMBERED}*")}
        if runs:
            names = sorted(map(str, runs))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            return f"{folder} holds runs and is none: name one of {', '.join(names[:3])}{more}"
    if osp.isfile(osp.join(folder, record.FILE)):
        return f"{folder} holds no model: its run only tested, or its method trains nothing"
    if osp.isfile(osp.join(folder, CONFIG_FILE)):
        return (
            f"{folder} holds no model: its run has not ended, and saved none so far. Start the "
            "same command again, or correct --model-dir"
        )
    return (
        f"{folder} is no run folder of a trained method: no folder in it holds a {NUMBERED}*. "
        "Train first, or correct --model-dir"
    )


def _model_folders(run: str) -> list[str]:
    if not osp.isdir(run):
        return []
    return [name for name in sorted(os.listdir(run)) if _models(osp.join(run, name))]


def _models(folder: str) -> list[str]:
    if not osp.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if name.startswith((NUMBERED, BEST)))


def stored_cfg(checkpoint: Mapping[str, Any], path: str) -> CfgNode:
    """Return the config of the run that wrote a checkpoint, over the defaults of this version.

    Args:
        checkpoint: as ``load_checkpoint`` reads it.
        path: its file, named in errors.

    Raises:
        ValueError: the checkpoint is of other code, a newer version or a method that is not
            registered, or its config has an unknown key.
    """
    if "meta" not in checkpoint:
        raise ValueError(
            f"{path} was not written by this toolbox, or by a trainer file of your own: it does "
            "not say its method, backbone and classes. Load it with train.py --eval-only "
            "--model-dir (and --trainer-file)"
        )
    _check_layout(checkpoint["meta"], path)
    method = checkpoint["meta"]["method"]
    check_method(method, path)
    return _over_the_defaults(stored_settings(checkpoint["meta"], path), method, path)


def check_method(method: str, path: str) -> None:
    """Check that the method that a file names is registered.

    Raises:
        ValueError: it is not; names ``path``.
    """
    try:
        TRAINER_REGISTRY.check(method)
    except ValueError as error:
        raise ValueError(f"{path} belongs to a method that is not here: {error}") from error


def untrained_run(run: str) -> tuple[CfgNode, list[str]] | None:
    """Return config and class names of the run of a method that trains nothing.

    Such a run has no checkpoint, and its record says all that is needed.

    Args:
        run: run folder.

    Returns:
        None where the folder holds a model, or no record.

    Raises:
        FileNotFoundError: its method has to be trained.
        ValueError: the record is damaged, its method is not registered, or its config has an
            unknown key.
    """
    if _model_folders(run) or (content := record.read(run)) is None:
        return None
    path, method = osp.join(run, record.FILE), content["method"]
    check_method(method, path)
    if hasattr(TRAINER_REGISTRY.get(method), "node"):
        trained = content["model"]["model_dir"]
        only_tested = f"it only tested that of {trained}: name that folder"
        raise FileNotFoundError(
            f"{run} holds no model of {method}: "
            + (only_tested if trained else "its run saved none, or it was removed. Train again")
        )
    names = content["data"]["classes"] and content["data"]["classes"]["names"]
    templates = content.get("templates", [])
    if not names or not all(isinstance(text, str) for text in (*names, *templates)):
        raise ValueError(f"{path} is damaged: it has no names of classes, or no texts as templates")
    for number, name in enumerate(names):
        check_name(name, f"{path}, class {number}")
    _check_nodes(content["config"], ("TRAINER",), path)
    cfg = _over_the_defaults(content["config"], method, path)
    cfg.DATASET.TEMPLATES = tuple(templates or cfg.DATASET.TEMPLATES)
    return cfg, names


def _over_the_defaults(stored: dict[str, Any], method: str, path: str) -> CfgNode:
    """Return the settings of a run over the defaults of this version."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    # keys that a data set declares; prediction does not need the data set
    for key, value in _node(stored["DATASET"], path).items():
        cfg.DATASET.setdefault(key, value)
    own = ("NAME", config_node(method))
    # settings of how the run was computed, which a prediction chooses anew
    for key in ("FAST_ENCODERS", "MEMORY_GB", "OPENAI_DRAWS"):
        stored["MODEL"].pop(key, None)
    stored["OPTIM"].pop("TEXT_CHUNK", None)
    stored["TRAINER"] = {key: value for key, value in stored["TRAINER"].items() if key in own}
    try:
        cfg.merge_from_other_cfg(_node(stored, path))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} was written with another set of config keys: {error}") from error
    return cfg


def stored_settings(meta: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Read the config in a checkpoint, with its method's settings under this version's keys.

    Raises:
        ValueError: it is damaged; names ``path``.
    """
    try:
        stored = parse_yaml(meta["config"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its config is not valid YAML: {error}") from error
    trainer = TRAINER_REGISTRY.get(meta["method"])
    _check_nodes(stored, ("TRAINER", trainer.node), path)
    trainer.update_settings(stored["TRAINER"][trainer.node])
    return stored


def _check_nodes(stored: Any, of_method: Sequence[str], path: str) -> None:
    """Check that a stored config has the nodes that are read from it."""
    for place in (of_method, ("MODEL",), ("OPTIM",), ("DATASET",)):
        node: Any = stored
        for key in place:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f"{path} is damaged: its config has no keys {'.'.join(place)}.*")


def _node(tree: dict[str, Any], path: str) -> CfgNode:
    try:
        return CfgNode(tree)
    except AssertionError as error:  # yacs's, of values that no config holds
        raise ValueError(f"{path} is damaged: its config cannot be read: {error}") from error


def _check_layout(meta: Any, path: str) -> None:
    """Check what a checkpoint says about its run; empty for one of the published code."""
    if not isinstance(meta, Mapping):
        raise ValueError(f"{path} is damaged: its meta is a {type(meta).__name__}")
    version = meta.get("version", 1)
    if isinstance(version, int) and version > CHECKPOINT_VERSION:
        raise ValueError(
            f"{path} has layout {version}, newer than this toolbox reads "
            f"({CHECKPOINT_VERSION}): update it (written by version {meta.get('library')})"
        )
    if not meta:
        return
    kinds = {"version": int, "method": str, "backbone": str, "config": str, "classnames": list}
    found = {"version": 1, **meta}
    for key, kind in kinds.items():
        if type(found.get(key)) is not kind:
            raise ValueError(f"{path} is damaged: its meta has no {key} of type {kind.__name__}")
    if not meta["classnames"]:
        raise ValueError(f"{path} is damaged: its meta names no class")
    for number, name in enumerate(meta["classnames"]):
        if not isinstance(name, str):
            raise ValueError(f"{path} is damaged: the name of class {number} is {name!r:.80}")
        check_name(name, f"{path}, class {number}")


def check_origin(meta: Mapping[str, Any], cfg: CfgNode, path: str) -> None:
    """Check that a checkpoint has the method, backbone and bound settings of a config.

    Bound settings (``PromptTrainer.bound_settings``) decide what the learned tensors mean.

    Args:
        meta: stored in the checkpoint; empty for one of the published code.
        cfg: config of the run that is to load it.
        path: file of the checkpoint, named in errors.

    Raises:
        ValueError: one of them differs.
    """
    _check_layout(meta, path)
    for key, mine, flag in (
        ("method", cfg.TRAINER.NAME, "--trainer"),
        ("backbone", cfg.MODEL.BACKBONE.NAME, "--backbone"),
    ):
        theirs = meta.get(key, mine)
        if theirs != mine:
            raise ValueError(
                f"{path} was trained with {key} {theirs}, this run has {mine}: "
                f"change {flag} or the folder"
            )
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    stored = stored_settings(meta, path)["TRAINER"][trainer.node] if meta else {}
    for key in trainer.bound_settings:
        mine = cfg.TRAINER[trainer.node][key]
        mine = list(mine) if isinstance(mine, tuple) else mine  # as YAML has it
        if stored.get(key, mine) != mine:
            name = f"TRAINER.{trainer.node}.{key}"
            raise ValueError(
                f"{path} was trained with {name} {stored[key]}, this run has {mine}: add "
                f"{name} {stored[key]!r} to the command, or change the folder"
            )


def check_continues(
    meta: Mapping[str, Any], cfg: CfgNode, classnames: Sequence[str], path: str
) -> bool:
    """Check that a run can be resumed from a checkpoint.

    All settings must agree except those of how a run is computed and what it prints
    (``dassl.config.RUNTIME_KEYS``, of which INPUT.SEEDED_VIEWS must agree here: the images that are
    left would have other views). With ``TRAIN.EXTEND``, ``OPTIM.MAX_EPOCH`` may be larger.

    Args:
        meta: stored in the checkpoint.
        cfg: config of the resumed run, as it would be stored.
        classnames: its classes.
        path: file of the checkpoint, named in errors.

    Returns:
        whether the run becomes longer than it was when it began.

    Raises:
        ValueError: the settings or classes differ, or the run would become longer although its
            method depends on the number of epochs.
    """
    stored = dict(leaves(stored_settings(meta, path)))
    mine = dict(leaves(yaml.safe_load(cfg.dump())))
    method = cfg.TRAINER.NAME
    read = ("TRAINER.NAME", f"TRAINER.{config_node(method)}.")
    differences = {
        key: f"{key} {stored[key]} (now {value})"
        for key, value in mine.items()
        # an older version may lack the key
        if key in stored and stored[key] != value
        if not is_runtime_key(key) or key == "INPUT.SEEDED_VIEWS"
        # settings of other methods have no effect
        if not key.startswith("TRAINER.") or key.startswith(read)
    }
    epochs = "OPTIM.MAX_EPOCH"
    by_epochs = mine["OPTIM.MAX_ITERATIONS"] == 0
    longer = by_epochs and epochs in differences and mine[epochs] > stored[epochs]
    extended = longer and cfg.TRAIN.EXTEND
    if extended:
        del differences[epochs]
    if not differences and list(meta["classnames"]) != list(classnames):
        then, now = len(meta["classnames"]), len(classnames)
        differences["classes"] = f"other classes ({then} then, {now} now)"
    if differences:
        hint = ""
        if longer and list(differences) == [epochs]:
            hint = "; to train that run for longer, add TRAIN.EXTEND True"
        raise ValueError(
            f"{path} belongs to a run with {', '.join(differences.values())}: give this one "
            f"another output folder, or resume it with its own settings{hint}"
        )
    if extended and not TRAINER_REGISTRY.get(method).extends:
        raise ValueError(
            f"{path} belongs to a run of {stored[epochs]} epochs, and TRAIN.EXTEND cannot make it "
            f"longer: {method} trains otherwise with another number of epochs; give this run "
            "another output folder"
        )
    return bool(extended)


def checked_weights(
    checkpoint: Mapping[str, Any],
    learner: PromptLearner,
    classnames: Sequence[str],
    path: str,
    any_images: bool = False,
    rows_of_all: tuple[Sequence[int], int] | None = None,
) -> dict[str, Tensor]:
    """Return the weights of a checkpoint after checking that they fit a learner.

    Args:
        checkpoint: as ``load_checkpoint`` reads it; also one of the published code.
        learner: the learner to load them into.
        classnames: the classes of that learner.
        path: file of the checkpoint, named in errors.
        any_images: whether tensors of the learner that have a row for each training image take the
            number of images of the checkpoint.
        rows_of_all: where the classes stand among more classes, and how many those are, for a
            checkpoint of the published code with a row for each of these, which it does not name.

    Raises:
        ValueError: not a checkpoint, a newer layout, other names or shapes, or a class-specific
            learner of other classes.
    """
    if missing := [key for key in ("state_dict", "epoch") if key not in checkpoint]:
        raise ValueError(
            f"{path} is not a checkpoint of a run: it has no {' and no '.join(missing)}, but "
            f"{', '.join(map(str, list(checkpoint)[:5])) or 'nothing'}"
        )
    meta = checkpoint.get("meta", {})
    _check_layout(meta, path)
    trained_on = meta.get("classnames", list(classnames))
    rows: list[int] | None = None
    n_trained: int | None = None
    if learner.class_specific and trained_on != list(classnames):
        rows = _rows_of(classnames, trained_on) if learner.class_rows else None
        if rows is None:
            raise ValueError(
                f"{path} is class-specific: it fits only the {len(trained_on)} classes that it was "
                f"trained with ({', '.join(trained_on[:3])}{', ...' * (len(trained_on) > 3)}) "
                + ("or some of them" if learner.class_rows else "in their order")
                + ", and no others"
            )
    weights = checkpoint["state_dict"]
    try:
        check_weights(weights, Tensor)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not meta:
        weights = learner.from_upstream(_trained_upstream(weights, learner))
        n_trained = _number_of_rows(weights, learner)
        if n_trained is not None and n_trained != len(classnames):
            rows = _rows_of_unnamed(n_trained, classnames, rows_of_all, path)
    learner.make_room(weights, trained_on)
    if rows is not None:
        weights = learner.select_classes(weights, rows, n_trained or len(trained_on))
    per_image = [weights[key] for key in learner.per_image if key in weights]
    if any_images and per_image and per_image[0].dim():
        learner.set_n_images(len(per_image[0]))
    own = learner.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is not known to this method" for key in weights if key not in own]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, this run needs {tuple(own[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit this run: {'; '.join(problems)}. Use the config, backbone "
            "and (for class-specific contexts) the classes that it was trained with"
        )
    try:
        learner.check_values(weights)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return weights


def _rows_of(classnames: Sequence[str], trained_on: Sequence[str]) -> list[int] | None:
    """Return where classes stand among those of a training; None if one is not there.

    Of several classes of one name (ImageNet has such), the first asked for is the first there.
    """
    places: dict[str, list[int]] = {}
    for row, name in enumerate(trained_on):
        places.setdefault(name, []).append(row)
    try:
        return [places[name].pop(0) for name in classnames]
    except (KeyError, IndexError):
        return None


def _number_of_rows(weights: Mapping[str, Tensor], learner: PromptLearner) -> int | None:
    """Return how many classes all tensors with a row for each class have; None if they differ."""
    found = [weights[key] for key in learner.class_rows if key in weights]
    numbers = {len(tensor) for tensor in found if tensor.dim()}
    return numbers.pop() if len(numbers) == 1 else None


def _rows_of_unnamed(
    n_trained: int,
    classnames: Sequence[str],
    rows_of_all: tuple[Sequence[int], int] | None,
    path: str,
) -> list[int]:
    """Return where classes stand among those of a training that are not named.

    Raises:
        ValueError: it is not known.
    """
    rows, n_all = rows_of_all or ((), 0)
    if n_trained == n_all:
        return list(rows)
    listed = f" of {n_all} that its classnames.txt lists" if n_all else ""
    raise ValueError(
        f"{path} has a row for each of the {n_trained} classes that it was trained with and does "
        f"not name them, and this run has {len(classnames)}{listed}: test it on the classes of its "
        "training, in their order. Only variants of ImageNet choose rows, if their classnames.txt "
        "lists all of its classes"
    )


def trained_classes(
    checkpoint: Mapping[str, Any], cfg: CfgNode, classnames: Sequence[str], path: str
) -> list[str]:
    """Return the classes that a checkpoint's learner was trained with, for ``PromptedCLIP``.

    Args:
        checkpoint: as ``load_checkpoint`` reads it, checked; also one of the published code.
        cfg: config of the run that loads it.
        classnames: the classes of that run.
        path: file of the checkpoint, named in errors.

    Returns:
        the names; none if it was trained on another data set. The published code's checkpoints do
        not say: those that a run on base classes loads were trained with these.
    """
    meta = checkpoint.get("meta")
    if not meta:
        return list(classnames) if cfg.DATASET.get("SUBSAMPLE_CLASSES") == "base" else []
    data_set = stored_settings(meta, path)["DATASET"].get("NAME")
    return list(meta["classnames"]) if data_set == cfg.DATASET.NAME else []


#: names that the published code's checkpoints give to embedded class names and to frozen weights
NOT_LEARNED = (
    *("token_prefix", "token_suffix", "token_embedding", "tokenized_prompts"),
    *("prompt_embeddings", "logit_scale"),
)
FROZEN_COPIES = ("prompt_learner.ZS_image_enc", "model_distill.")


def _trained_upstream(weights: Mapping[str, Tensor], learner: PromptLearner) -> dict[str, Tensor]:
    """Select the trained tensors in a checkpoint of the published code.

    It also holds weights of the frozen CLIP, and embedded class names, which belong to the classes
    of that run.
    """

    def frozen(key: str) -> bool:
        if key.removeprefix("prompt_learner.") in NOT_LEARNED or key.startswith(FROZEN_COPIES):
            return True
        inside = key.startswith(("image_encoder.", "text_encoder."))
        return inside and not any(part in key for part in learner.upstream_in_encoders)

    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return {key: value.float() for key, value in weights.items() if not frozen(key)}
