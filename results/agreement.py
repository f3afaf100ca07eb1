"""Decide which runs may be averaged, by settings and data, and name what sets others apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from dassl.config import DATA_SETS_KEY, decoded, is_runtime_key

from .backbones import backbone_name
from .record import RunResult, settings_of

Label = TypeVar("Label", bound=Hashable)

# Settings of a training, which a test of its weights has as well and does not read.
TRAINING = ("OPTIM.", "TRAIN.", "DATALOADER.", "DATASET.NUM_SHOTS")
CLASSES, BACKBONE = "DATASET.SUBSAMPLE_CLASSES", "MODEL.BACKBONE.NAME"
OF_TRAINING = " of the training"
# Differences that a line names; it says how many more there are.
MOST_NAMED = 3


def description(result: RunResult, part: str = "", seed: object = "") -> dict[str, Any]:
    """Return what has to agree among runs that are averaged: name -> value.

    Two runs are compared in the names that both have. What may differ between base and new
    classes, or between seeds, therefore has the part or the seed in its name.

    Args:
        result: the result of a run; a log tells its configuration only.
        part: base or new, where a row has both.
        seed: the seed of the run.
    """
    if result.record is None:
        return _of_settings(_logged(result.facts), part, result.zero_shot)
    record = result.record
    own, data = settings_of(record), record["data"]
    images = data["train"] and data["train"]["sha256"]
    if result.zero_shot:
        found = _of_settings(own, part, without_training=True)
    elif not record["eval_only"]:
        found = _of_settings(own, part) | _of_training(own, images, seed)
    elif trained := record["model"]["trained"]:
        found = _of_settings(own, part, without_training=True)
        found |= _of_training(trained["settings"], trained["train_sha256"], seed)
    else:
        found = _of_settings(own, part)
    for name in ("test", "classes"):
        if data[name]:
            shown = "test images" if name == "test" else "classes"
            found[f"{shown} ({part})" if part else shown] = data[name]["sha256"]
    return found


def description_across_data_sets(result: RunResult) -> dict[str, Any]:
    """Return what has to agree among runs of several data sets that are averaged: name -> value.

    What is set for the data set alone, in its own file or below ``_DATASETS_``, need not agree.
    """
    given = {} if result.record is None else result.record["given"]
    file = None if result.record is None else result.record["arguments"]["dataset_config_file"]
    own = {key for key, by in given.items() if by == file or by.endswith(DATA_SETS_KEY)}
    return {
        name: value
        for name, value in description(result).items()
        if "." in name and not name.startswith("DATASET.")
        if name.removesuffix(OF_TRAINING) not in own
    }


def _of_settings(
    settings: Mapping[str, Any], part: str = "", without_training: bool = False
) -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        if without_training and key.startswith(TRAINING):
            continue
        value = decoded(value)
        if key == BACKBONE:
            value = backbone_name(str(value)) or value
        found[f"{key} ({part})" if key == CLASSES and part else key] = value
    return found


def _of_training(settings: Mapping[str, Any], images: str | None, seed: object) -> dict[str, Any]:
    """Return what has to agree of the training that made a run's weights."""
    found = {f"training images (seed {seed})": images}
    for key, value in _of_settings(settings).items():
        found[key if key.startswith(TRAINING) else f"{key}{OF_TRAINING}"] = value
    return found


def _logged(facts: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among the facts of a log: dotted keys with a value."""
    return {
        key: value
        for key, value in facts.items()
        if "." in key and value and not is_runtime_key(key)
    }


def agreeing(
    descriptions: Mapping[Label, Mapping[str, Any]],
) -> tuple[list[Label], dict[str, list[Label]]]:
    """Return the runs that agree with one another, and what sets each of the others apart.

    Runs that agree with more others are kept first; a run that disagrees with them is not kept.

    Args:
        descriptions: run -> what has to agree, from :func:`description`.

    Returns:
        The runs that are kept, and difference -> the runs that have it.
    """

    def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return all(one[name] == other[name] for name in one.keys() & other.keys())

    def number_with(label: Label) -> int:
        return sum(agree(descriptions[label], other) for other in descriptions.values())

    kept: list[Label] = []
    apart: dict[str, list[Label]] = {}
    for label in sorted(descriptions, key=number_with, reverse=True):
        one = descriptions[label]
        against = [descriptions[k] for k in kept if not agree(one, descriptions[k])]
        if against:
            apart.setdefault(_differences(one, against[0]), []).append(label)
        else:
            kept.append(label)
    return [label for label in descriptions if label in kept], apart


def _differences(one: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    names = [name for name in one if name in reference and one[name] != reference[name]]
    # a setting of the training itself is named once
    names = [name for name in names if name.removesuffix(OF_TRAINING) not in set(names) - {name}]
    texts = [f"{name} {_shown(one[name])} (not {_shown(reference[name])})" for name in names]
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more


def _shown(value: Any) -> str:
    """Return a value as a line shows it; of a fingerprint, its start."""
    text = str(value)
    return text[:8] if len(text) == 64 and not set(text) - set("0123456789abcdef") else repr(value)


def leave_out(
    results: Mapping[Label, RunResult],
    described: Mapping[Label, Mapping[str, Any]],
    where: str,
    named: Callable[[Iterable[Label]], str],
    note: Callable[[str], None],
) -> list[Label]:
    """Return the runs to average, and name those that are not.

    Where no run has a record all are kept, since logs say too little to compare them.

    Args:
        results: run -> its result.
        described: run -> its :func:`description`.
        where: what they are runs of, for the message.
        named: returns the text for the runs that a message is about.
        note: called with a line for every difference.
    """
    if all(result.record is None for result in results.values()):
        return list(results)
    kept, apart = agreeing(described)
    for difference, labels in apart.items():
        note(f"left out: {where}: {named(labels)} with {difference}")
    return kept
