"""Find out what there is of a data set, without the network and without writing anything."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..whereabouts import explain_missing, similar_folders
from .sources import CONFIGS, Source

if TYPE_CHECKING:
    from ..fewshot import FewShotDataset, Lists

# Published counts are compared with this tolerance; one of them (ImageNet's) is rounded.
TOLERANCE = 0.01

READY = "ready"
WILL_GENERATE = "ready, split will be generated (not the published one)"
GENERATED = "ready, split was generated here (not the published one)"
INCOMPLETE = "incomplete"
MISSING = "missing"
UNUSABLE = "cannot be used"


@dataclass
class Report:
    """State of one data set, and what went wrong while it was prepared."""

    stem: str
    state: str
    detail: str = ""
    classes: int | None = None
    images: tuple[int | None, ...] = (None, None, None)
    steps: list[str] = field(default_factory=list)  # what is left to do by hand
    notes: list[str] = field(default_factory=list)  # what else is to be said, below the table

    @property
    def usable(self) -> bool:
        return self.state.startswith(READY)


def locate(stem: str, root: str | Path) -> FewShotDataset:
    """Return the data set with its folders below ``root`` set, without reading it.

    Raises:
        FileNotFoundError: its folder or its image folder is missing.
    """
    dataset = object.__new__(dataset_class(stem))
    if folder := _config(stem)["DATASET"].get("IMAGEFOLDER", {}).get("FOLDER"):
        dataset.dataset_dir = os.path.expanduser(folder)
    dataset.locate(str(root))
    return dataset


@functools.cache
def dataset_class(stem: str) -> type[FewShotDataset]:
    """Return the class that ``configs/datasets/<stem>.yaml`` names.

    Raises:
        ValueError: its file has an error.
    """
    from dassl.data.datasets import DATASET_REGISTRY

    from .. import register_all

    register_all()
    name = _config(stem)["DATASET"]["NAME"]
    DATASET_REGISTRY.check(name)
    return DATASET_REGISTRY.get(name)


def _config(stem: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((CONFIGS / f"{stem}.yaml").read_text(encoding="utf-8"))


def is_there(path: Path) -> bool:
    """Return whether a file, or a folder with anything in it, exists."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def read_lists(dataset: FewShotDataset) -> tuple[str, tuple]:
    """Read the lists of a data set, writing nothing.

    Returns:
        state (``READY``, ``WILL_GENERATE`` or ``GENERATED``) and (train, val or None, test).

    Raises:
        OSError, ValueError: as the data set itself does when something is missing or wrong.
    """
    lists: Lists
    if dataset.split_file is None:
        state, lists = READY, dataset.read_annotations()
    elif not os.path.isfile(split := os.path.join(dataset.dataset_dir, dataset.split_file)):
        state, lists = WILL_GENERATE, dataset.read_annotations()
    else:
        lists = dataset.read_split(split, dataset.image_dir)
        changed = dataset.generate_if_changed(split)
        state = GENERATED if changed or _was_generated(dataset, lists) else READY
        lists = changed or lists
    dataset.check_lists(lists[0], lists[2])
    return state, lists


def _was_generated(dataset: FewShotDataset, lists: tuple) -> bool:
    """Return whether a split file holds what ``read_annotations`` would put there."""
    try:
        generated = dataset.read_annotations()
    except Exception:  # the annotation is absent or damaged, and not needed
        return False

    def rows(parts: tuple) -> list:
        return [[(i.impath, i.label, i.classname) for i in part] for part in parts]

    return rows(generated) == rows(lists)


def inspect(stem: str, source: Source, root: Path) -> Report:
    """Say what there is of a data set, without the network and without writing anything.

    Args:
        stem: its name.
        source: what a complete one has.
        root: data root.
    """
    try:
        cls = dataset_class(stem)
    except ValueError as error:
        return Report(stem, UNUSABLE, str(error))
    folder = root / cls.dataset_dir
    absent = [path for file in source.files for path in file.place if not is_there(folder / path)]
    if len(absent) == sum(len(file.place) for file in source.files):
        return Report(stem, MISSING, _lies_elsewhere(cls, folder, absent[0]))
    if absent and not (folder / cls.image_dir).is_dir():
        found = explain_missing(str(folder), absent[0], cls.layout)
        return Report(stem, INCOMPLETE, f"not there: {', '.join(absent)} ({found})")
    try:
        # data sets tell what they read
        with contextlib.redirect_stdout(io.StringIO()):
            state, lists = read_lists(locate(stem, root))
    except Exception as error:  # damaged annotation files raise nearly anything
        # Not all that is absent is needed, so what the data set itself complains of goes first.
        missing = f" (not there: {', '.join(absent)})" if absent else ""
        return Report(stem, INCOMPLETE, " ".join(f"{error}{missing}".split()))
    classes = len({item.label for item in lists[0]})
    images = tuple(
        None if expected is None else len(part or ())
        for part, expected in zip(lists, source.images, strict=True)
    )
    wrong = _implausible(classes, images, source)
    state = INCOMPLETE if wrong else state
    return Report(stem, state, detail=wrong, classes=classes, images=images)


def _lies_elsewhere(cls: type[FewShotDataset], folder: Path, wanted: str) -> str:
    """Describe what lies under other names and may be this data set; empty if nothing does."""
    if folder.is_dir():
        if not is_there(folder):
            return ""
    elif similar_folders(str(folder), cls.image_dir):
        wanted = cls.image_dir
    else:
        return ""
    return explain_missing(str(folder), wanted, cls.layout)


def inspect_without_source(stem: str) -> Report:
    """Report on a data set without a source: embedded, else missing."""
    from ..fewshot import FewShotDataset

    try:
        embedded = dataset_class(stem).prepare is not FewShotDataset.prepare
    except ValueError as error:
        return Report(stem, UNUSABLE, str(error))
    if embedded:
        return Report(stem, READY, "embedded, its images are written on first use")
    return Report(stem, MISSING, "no source of it is known; --sources can name one")


def _implausible(classes: int, images: Sequence[int | None], source: Source) -> str:
    wrong = []
    if classes != source.classes:
        wrong.append(f"{classes} classes instead of {source.classes}")
    for part, found, expected in zip(("train", "val", "test"), images, source.images, strict=True):
        if expected is None or found is None:
            continue
        if abs(found - expected) > TOLERANCE * expected:
            wrong.append(f"{found:,} {part} images instead of {expected:,}")
    return ", ".join(wrong)
