"""What the draw of shots and its cache consist of."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dassl.data.datasets import Datum

from .items import is_row, relative


def match(
    cache: Mapping[str, Any], part: str, items: Sequence[Datum], folder: str, source: str
) -> list[Datum]:
    """The members of `items` that a list of a cache names: same label, same path below `folder`."""
    rows = cache.get(part)
    if not isinstance(rows, list) or not all(map(is_row, rows)):
        raise ValueError(f"{source} has no list {part!r} of [path, label, class name]")
    tails = []
    for path, _, _ in rows:
        parts = path.split("/")
        tails.append(["/".join(parts[start:]) for start in range(len(parts))])
    wanted = {tail for ends in tails for tail in ends}
    prefix = os.path.join(folder, "")
    known = {}
    for item in items:
        below = relative(item.impath, prefix)
        if below in wanted:
            known[below] = item
    matched = []
    for (path, label, _), ends in zip(rows, tails, strict=True):
        item = next((known[tail] for tail in ends if tail in known), None)
        if item is None or item.label != label:
            raise ValueError(f"{source} names {path}, which is not in the present split")
        matched.append(item)
    return matched


def count_labels(items: Iterable[Datum]) -> Counter[int]:
    """Images per label; labels in the order of their first image."""
    return Counter([item.label for item in items])


def note_short(counts: Mapping[int, int], shots: int) -> None:
    """Say where classes have fewer images than shots; results/logs.py reads the first form."""
    short = [count for count in counts.values() if count < shots]
    if len(short) == len(counts):
        least, most = min(short), max(short)
        each = f"{most}" if least == most else f"{least} to {most}"
        print(f"Note: no class has {shots} training images: all are used, {each} per class")
    elif short:
        print(
            f"Note: {len(short)} of {len(counts)} classes have fewer than {shots} training "
            f"images (smallest: {min(short)}); they keep all they have"
        )


def skip_draws(counts: Mapping[int, int], shots: int) -> None:
    """Advance Python's generator as drawing `shots` per class would."""
    for count in counts.values():
        if count >= shots:
            random.sample(range(count), shots)
