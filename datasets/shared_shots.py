"""Few-shot images of published lists, ``split_fewshot/shot_<k>-seed_<s>_{train,val}.jsonl``.

2SFS publishes such lists (arXiv 2503.11609), so that methods can be compared on the same images. A
line is a JSON object with four keys: ``_impath``, below the data root, that is with the data set's
folder; ``_label``, the index among all classes; ``_domain``, which is not used; ``_classname``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dassl.data.datasets import Datum
from support.documents import parse_json

from .annotations import Line, read_lines
from .items import relative_path
from .shots import MAX_VAL_SHOTS, Drawn, count_labels, skip_draws

if TYPE_CHECKING:
    from .fewshot import FewShotDataset

KINDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}


def read_shared_shots(
    dataset: FewShotDataset, train: list[Datum], val: list[Datum] | None, shots: int, seed: int
) -> Drawn:
    """Read the images of a few-shot run from published lists.

    Python's generator is left in the state that a draw of as many images leaves it in.

    Args:
        dataset: names the folders.
        train, val: present lists of all classes; val None if the test list serves as validation,
            for which there is no published list.
        shots: training images per class, 1 or more.
        seed: of the run, part of the files' names.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: a line is wrong, names an image twice or one that is not in the present list
            with its label and class name, or a class has another number of images.
    """
    drawn: list[list[Datum] | None] = []
    for part, items, wanted in (("train", train, shots), ("val", val, min(shots, MAX_VAL_SHOTS))):
        if items is None:
            drawn.append(None)
            continue
        path = os.path.join(dataset.split_fewshot_dir, f"shot_{shots}-seed_{seed}_{part}.jsonl")
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"DATASET.SHARED_SHOTS: no file {path}. Put the published lists of these shots and "
                "this seed there, or have the images drawn: DATASET.SHARED_SHOTS False"
            )
        print(f"Few-shot images ({part}) of the published list {path}")
        drawn.append(_read(path, items, wanted, dataset.dataset_dir))
        skip_draws(count_labels(items), wanted, refill=False)
    chosen, held_out = drawn
    assert chosen is not None  # there always is a training list
    return chosen, held_out


def _read(path: str, items: Sequence[Datum], shots: int, dataset_dir: str) -> list[Datum]:
    """Return the items that a list names, in its order."""
    prefix = os.path.join(dataset_dir, "")
    folder = os.path.basename(dataset_dir)
    present = {f"{folder}/{relative_path(item.impath, prefix)}": item for item in items}
    first: dict[str, Line] = {}
    chosen = []
    for line in read_lines(path):
        row = _row(line)
        impath = row["_impath"].replace("\\", "/")
        item = present.get(impath)
        if item is None:
            raise line.error(
                f"names {impath}, which is not in the present list of the data set (its paths "
                f"begin with {folder}/)"
            )
        if impath in first:
            raise line.error(f"names {impath} again, after {first[impath].where}")
        first[impath] = line
        theirs, ours = (row["_label"], row["_classname"]), (item.label, item.classname)
        if theirs != ours:
            raise line.error(
                f"has label {theirs[0]} and class {theirs[1]!r} for {impath}, the data set has "
                f"{ours[0]} and {ours[1]!r}"
            )
        chosen.append(item)
    counts, available = (Counter(item.label for item in each) for each in (chosen, items))
    for label, count in sorted(available.items()):
        if counts[label] != min(shots, count):
            name = next(item.classname for item in items if item.label == label)
            raise ValueError(
                f"{path} has {counts[label]} images of class {name!r} and not {min(shots, count)}: "
                "it is of other shots, or lines are missing; fetch it again"
            )
    return chosen


def _row(line: Line) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise line.error(f"is not valid JSON ({error})") from error
    if not isinstance(row, dict) or set(row) != set(KINDS):
        found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise line.error(f"is no object with the keys {', '.join(KINDS)}, but {found[:200]}")
    for key, kind in KINDS.items():
        if type(row[key]) is not kind:
            raise line.error(f"has {row[key]!r:.80} as {key}, which is no {kind.__name__}")
    return row
