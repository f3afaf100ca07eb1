"""The record of a run, ``result.json`` beside its log: its settings and its results, as data.

A run writes it when it ends, and removes the record of an earlier run in its folder when it
begins, so that every record is of a finished run. For a folder without one, of upstream code or of
an older version, the logs are read. docs/results.md explains the fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.config import is_runtime_key, leaves
from support.documents import parse_json
from support.files import as_text, read_bytes, write_text

from .logs import NOT_TESTED, BadLog, read_facts, read_run

FILE = "result.json"
#: raised with every change that makes older code read a record wrongly
SCHEMA = 1
#: an evaluator's name of a metric -> the one that logs, records and ``--keyword`` have
METRICS = {"error_rate": "error", "perclass_accuracy": "average"}
#: of the metrics that are no percentages
UNITS = {"nll": "nats"}

# A list of images, and what makes it up: their paths below the data root, and labels.
_IMAGES = ({"images": int, "sha256": str}, None)
_NUMBER = (float, int, None)
# Name -> type: in a tuple the alternatives, in a dict the fields below, in a list its items' type.
# A record may have further fields.
FIELDS: dict[str, Any] = {
    "schema": int,
    "method": str,
    "eval_only": bool,
    "seed": (int, None),
    "seeds_together": (list, None),
    "shots": (int, None),
    "images_per_class": ({"least": int, "most": int}, None),
    "templates": list,
    "data": {
        "name": str,
        "classes": ({"number": int, "sha256": str, "names": list}, None),
        "train": _IMAGES,
        "train_u": _IMAGES,
        "val": _IMAGES,
        "test": _IMAGES,
    },
    "model": {
        "epoch": (int, None),
        "chosen_on": (str, None),
        "val_result": _NUMBER,
        "selection": (dict, None),
        "model_dir": (str, None),
        "load_epoch": (int, None),
        "trained": ({"settings": dict, "train_sha256": (str, None)}, None),
    },
    "result": (
        {
            "split": str,
            "metrics": dict,
            "total": (int, None),
            "correct": (int, None),
            "per_class": [
                {
                    "label": int,
                    "name": (str, None),
                    "total": int,
                    "correct": int,
                    "accuracy": (float, int),
                }
            ],
        },
        None,
    ),
    "not_tested": (str, None),
    "parameters": int,
    "device": {"type": str, "name": str},
    "started": str,
    "ended": str,
    "host": str,
    "starts": [
        {
            "started": str,
            "epoch": int,
            "step": int,
            "from": (str, None),
            "host": str,
            "device": str,
            "commit": (str, None),
            "seconds": (float, int),
        }
    ],
    "seconds": {"training": _NUMBER, "epochs": list, "testing": _NUMBER},
    "memory": {"host_bytes": (int, None), "cuda_bytes": (int, None)},
    "versions": dict,
    "git": ({"commit": str, "dirty": bool}, None),
    "environment": str,
    "config": dict,
    "given": dict,
    "arguments": dict,
}
#: fields that older records lack
LATER = ("host", "starts", "model.selection", "templates")


def unit(metric: str) -> str:
    """Return the unit of a metric: ``%``, or that of ``UNITS``."""
    return UNITS.get(metric, "%")


def in_unit(value: float, metric: str) -> str:
    """Return a value of a metric with its unit, as in ``83.25%``."""
    return f"{value:.2f}%" if unit(metric) == "%" else f"{value:.2f} {unit(metric)}"


class BadRecord(BadLog):
    """A record that cannot be used; the text names the file and says why."""


# --- writing and reading --------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value in JSON's types: numbers for arrays of one, lists for tuples, else text.

    Numbers that are not finite become texts, since JSON has none.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        return plain(value.item())
    except (AttributeError, ValueError, RuntimeError):  # not one number
        return str(value)


def write(folder: str | Path, content: Mapping[str, Any]) -> Path:
    """Write the record of a run that has ended, whole or not at all.

    Args:
        folder: the run's.
        content: all of ``FIELDS`` but the schema; its values are made plain.

    Returns:
        The file.

    Raises:
        BadRecord: a field is missing or has another type.
        OSError: the file cannot be written.
    """
    path = Path(folder, FILE)
    content = plain({"schema": SCHEMA, **content})
    if content["result"] is not None:
        content["result"]["metrics"] = _metrics(content["result"])
    _check(content, FIELDS, "", path)
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)
    return path


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics under the names that logs use, with the mean accuracy of the classes."""
    metrics = {METRICS.get(name, name): value for name, value in result["metrics"].items()}
    accuracies = [entry["accuracy"] for entry in result["per_class"]]
    if accuracies:
        metrics.setdefault("average", math.fsum(accuracies) / len(accuracies))
    return metrics


def forget(folder: str | Path) -> None:
    """Remove a run folder's record, if there is one: a new run begins there."""
    Path(folder, FILE).unlink(missing_ok=True)


def read(folder: str | Path) -> dict[str, Any] | None:
    """Return the record of a run; None where the folder has none.

    Raises:
        BadRecord: it is damaged, or of a newer version.
    """
    path = Path(folder, FILE)
    try:
        content = parse_json(as_text(read_bytes(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadRecord(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(path, f"not JSON: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadRecord(
            f"{path}: written by a newer version (schema {schema}, this one reads {SCHEMA}): "
            "update the toolbox"
        )
    _check(content, FIELDS, "", path)
    _check(content["config"].get("TRAINER", {}), dict, "config.TRAINER", path)
    return content


def _damaged(path: Path, what: str) -> BadRecord:
    return BadRecord(f"{path}: damaged ({what}): run the same command again, or restore the file")


def _check(content: Any, kind: Any, name: str, path: Path) -> None:
    """Check a value against its kind in ``FIELDS``.

    Raises:
        BadRecord: it is of another kind; names the field.
    """
    kinds: tuple[Any, ...] = kind if isinstance(kind, tuple) else (kind,)
    for one in kinds:
        expected: Any = one if isinstance(one, type) else type(one)
        if type(content) is not expected:
            continue
        if isinstance(one, dict):
            for key, below in one.items():
                full = f"{name}.{key}" if name else key
                if key not in content and full in LATER:
                    continue
                if key not in content:
                    raise _damaged(path, f"no {full}")
                _check(content[key], below, full, path)
        if isinstance(one, list):
            for number, item in enumerate(content):
                _check(item, one[0], f"{name}[{number}]", path)
        return
    raise _damaged(path, f"{name or 'all of it'} is {str(content)[:40]!r}")


# --- what a record says ---------------------------------------------------------------------------


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of the settings that tell one run from another.

    Left out are ``dassl.config.RUNTIME_KEYS``, the seed, and defaults of other methods' nodes. In
    texts ``{seed}`` stands for the seed.
    """
    trainer = record["config"].get("TRAINER", {})
    nodes = [name for name, node in trainer.items() if isinstance(node, dict)]
    own = nodes if len(nodes) == 1 else [record["method"].upper()]
    here = f"seed{record['seed']}"
    settings = {}
    for key, value in leaves(record["config"]):
        section, *path = key.split(".")
        foreign = section == "TRAINER" and len(path) > 1 and path[0] not in own
        if key == "SEED" or is_runtime_key(key) or (foreign and key not in record["given"]):
            continue
        settings[key] = value.replace(here, "seed{seed}") if isinstance(value, str) else value
    return settings


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of a test says about the run whose weights it tests."""
    data = record["data"]
    return {
        "method": record["method"],
        "data": data["name"],
        "classes_sha256": data["classes"] and data["classes"]["sha256"],
        "train_sha256": data["train"] and data["train"]["sha256"],
        "seed": record["seed"],
        "shots": record["shots"],
        "chosen_on": record["model"]["chosen_on"],
        "library": record["versions"].get("library"),
        "commit": record["git"] and record["git"]["commit"],
        "ended": record["ended"],
        "settings": settings_of(record),
    }


def identity_in(folder: str | Path) -> dict[str, Any] | None:
    """Return :func:`identity` of the run in a folder; None where it left no usable record."""
    try:
        record = read(folder)
    except BadRecord:
        return None
    return identity(record) if record else None


def _is_zero_shot(record: Mapping[str, Any]) -> bool:
    """Tell whether nothing was learned; a method may learn from images and train no parameters."""
    learned = record["seconds"]["training"] is not None or record["model"]["model_dir"]
    return record["parameters"] == 0 and not learned


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a record says about its run, as ``logs.read_facts`` does of a log."""
    said = record["arguments"] | dict(leaves(record["config"]))
    facts = {key: str(value) for key, value in said.items()}
    facts["parameters"] = str(record["parameters"])
    if _is_zero_shot(record):
        facts["zero_shot"] = "True"
    counts, shots = record["images_per_class"], record["shots"]
    if counts and shots and counts["most"] < shots:
        least, most = counts["least"], counts["most"]
        facts["images_per_class"] = f"{most}" if least == most else f"{least} to {most}"
    return facts


# --- a run's result -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run.

    ``value`` is a metric in percent, rounded to two decimals where ``source``, the file, is a log;
    ``facts`` are those of :func:`facts_of`; ``record`` is None for a log.
    """

    source: Path
    value: float
    facts: dict[str, str]
    record: dict[str, Any] | None = None

    @property
    def zero_shot(self) -> bool:
        """Whether nothing was learned for it, as far as is known."""
        return self.facts.get("zero_shot") == "True"

    @property
    def chosen_on_test(self) -> bool:
        """Whether test images chose its epoch or other values of it, as far as is known."""
        if self.record is not None:
            model = self.record["model"]
            selection = model.get("selection") or {}
            return "test" in (model["chosen_on"], selection.get("on"))
        best = self.facts.get("TEST.FINAL_MODEL") == "best_test"
        return best and self.facts.get("eval_only") == "False"


def read_result(folder: Path, keyword: str, test_log: bool | None) -> RunResult:
    """Return the result of a run, from its record, or from its logs where it has none.

    Args:
        folder: the run's.
        keyword: the metric: accuracy, error, macro_f1, average, or one of an evaluator's own.
        test_log: whether its logs are of a test; None lets them tell. A record always tells.

    Raises:
        BadLog: the run is not finished, was not tested, or has no such value.
    """
    record = read(folder)
    if record is None:
        path, value = read_run(folder, keyword, test_log)
        return RunResult(path, value, read_facts(path))
    path = folder / FILE
    if record["result"] is None:
        raise BadLog(f"{path}: {NOT_TESTED}{record['not_tested']}")
    metrics = record["result"]["metrics"]
    if keyword not in metrics:
        raise BadLog(f"{path}: no {keyword}")
    if isinstance(metrics[keyword], bool) or not isinstance(metrics[keyword], float | int):
        raise BadLog(f"{path}: {keyword} is {metrics[keyword]!r}, not a number")
    return RunResult(path, float(metrics[keyword]), facts_of(record), record)


def metrics_in(folder: Path) -> set[str]:
    """Return the names of the metrics that the records below a folder show."""
    found: set[str] = set()
    for path in folder.rglob(FILE):
        try:
            record = read(path.parent)
        except BadRecord:
            continue
        found |= set(record["result"]["metrics"]) if record and record["result"] else set()
    return found
