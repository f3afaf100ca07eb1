"""What a report tells of a run: when, where and of what it was made, and all its settings."""

from __future__ import annotations

import json
from typing import Any

from dassl.config import leaves

from ..rows import listing
from .gather import Run
from .svg import shown

#: fields of a record that have words of their own here or stand elsewhere on the page; whatever
#: else a record holds is shown as it is
ELSEWHERE = frozenset(
    "schema method eval_only seed seeds_together shots templates images_per_class data model "
    "result not_tested parameters device started ended seconds memory versions git environment "
    "config given arguments".split()
)


def facts_of(run: Run, environments: list[str]) -> list[tuple[str, str]]:
    """Return what the page tells of a run: name and text."""
    record = run.record
    if record is None:
        return [("record", "none: read from its log")] if run.result else []
    seconds, memory, git = record["seconds"], record["memory"], record["git"]
    found: list[tuple[str, Any]] = [
        ("started", record["started"]),
        ("ended", record["ended"]),
        ("training", seconds["training"] and f"{seconds['training']:.1f} s"),
        ("epochs", len(seconds["epochs"]) or None),
        ("test", seconds["testing"] and f"{seconds['testing']:.1f} s"),
        ("device", f"{record['device']['type']}, {record['device']['name']}"),
        ("most memory", memory["host_bytes"] and f"{memory['host_bytes'] / 2**20:,.0f} MiB"),
        ("on the GPU", memory["cuda_bytes"] and f"{memory['cuda_bytes'] / 2**20:,.0f} MiB"),
        ("parameters", f"{record['parameters']:,}"),
        ("weights of epoch", record["model"]["epoch"]),
        ("chosen on", record["model"]["chosen_on"]),
        ("weights from", record["model"]["model_dir"]),
        ("seeds together", record["seeds_together"] and listing(record["seeds_together"])),
        ("versions", ", ".join(f"{n} {v}" for n, v in record["versions"].items())),
        ("code", git and git["commit"] + (", with changes" if git["dirty"] else "")),
        ("classes", record["data"]["classes"] and record["data"]["classes"]["number"]),
    ]
    for split in ("train", "val", "test"):
        if images := record["data"][split]:
            found.append((f"{split} images", f"{images['images']:,}, {images['sha256'][:12]}"))
    if record["result"]:
        numbers = record["result"]["metrics"].items()
        found.append(("result", ", ".join(f"{n} {v:.2f}" if isinstance(v, float) else f"{n} {v}"
                                          for n, v in numbers)))  # fmt: skip
    words = {name: value for name, value in record["arguments"].items() if value}
    found.append(("arguments", json.dumps(words, ensure_ascii=False)))
    found.append(("predictions", "kept" if run.has_predictions else "not kept"))
    found += [
        (name, json.dumps(value, ensure_ascii=False))
        for name, value in record.items()
        if name not in ELSEWHERE
    ]
    if record["environment"] in environments:
        found.append(("environment", f"no. {environments.index(record['environment']) + 1} below"))
    return [(name, shown(text)) for name, text in found if text is not None and text != ""]


def settings_of(run: Run) -> list[tuple[str, str, str]]:
    """Return all settings of a run: key, value, and what gave it (empty for a default)."""
    if run.record is None:
        return []
    given = run.record["given"]
    return [
        (key, shown(value), shown(given.get(key, "")))
        for key, value in leaves(run.record["config"])
    ]
