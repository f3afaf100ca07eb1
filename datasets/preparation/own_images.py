"""Check a folder of one's own images before anything is trained on it; nothing is written."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from support.files import sha256_of
from support.words import counted

from ..items import PARTS
from .inspection import INCOMPLETE, READY, Report, dataset_class
from .sources import CONFIGS

if TYPE_CHECKING:
    from dassl.data.datasets import Datum

    from ..imagefolder import ImageFolder

#: training images of a class that the usual protocols take
SHOTS = 16
#: test images below which one of them is more than a point of accuracy
FEW_TESTS = 100
#: groups of equal files that are listed
MOST_SHOWN = 20


def is_own(stem: str) -> bool:
    """Return whether a data set is of one's own images.

    Raises:
        ValueError: its file has an error.
    """
    from ..imagefolder import ImageFolder

    return issubclass(dataset_class(stem), ImageFolder)


def inspect_own(stem: str, root: Path) -> Report:
    """Read all images of a data set, and say what is wrong with them.

    Args:
        stem: its file of ``configs/datasets/``.
        root: data root.

    Returns:
        Its numbers; ``notes`` have images per class, and unreadable, equal and too few images.
        It cannot be used where images are unreadable, or two classes have the same one.
    """
    from tqdm import tqdm

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            dataset = _build(stem, root)
    except (OSError, ValueError) as error:
        return Report(stem, INCOMPLETE, str(error))
    parts: dict[str, list[Datum]] = {} if dataset.test_only else {"train": dataset.train_x}
    if dataset.val and dataset.val is not dataset.test:
        parts["val"] = dataset.val
    if dataset.test:
        parts["test"] = dataset.test
    images = [(part, item) for part, items in parts.items() for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        states = pool.map(lambda image: _look_at(image[1].impath, dataset.image_remedy), images)
        # no bar in the log of a job
        found = list(tqdm(states, desc=stem, total=len(images), leave=False, disable=None))
    unreadable = [wrong for wrong, _ in found if wrong]
    equal: dict[str, list[tuple[str, Datum]]] = defaultdict(list)
    for image, (_, content) in zip(images, found, strict=True):
        equal[content].append(image)
    groups = [group for group in equal.values() if len(group) > 1]
    clashes = [group for group in groups if len({item.label for _, item in group}) > 1]
    notes = [
        *(line for line in said.getvalue().splitlines() if line.startswith("Note: ")),
        _classes(parts),
        *_few(parts),
        *_listed(counted(len(unreadable), "unreadable image"), unreadable),
        *_equal(groups, clashes, dataset.dataset_dir),
    ]
    wrong = [
        counted(len(unreadable), "unreadable image") if unreadable else "",
        f"{counted(len(clashes), 'image')} in two classes" if clashes else "",
    ]
    return Report(
        stem,
        INCOMPLETE if any(wrong) else READY,
        ", ".join(filter(None, wrong)),
        classes=dataset.num_classes,
        images=tuple(len(parts[part]) if part in parts else None for part in PARTS),
        notes=notes,
    )


def _build(stem: str, root: Path) -> ImageFolder:
    import datasets
    from dassl.config import get_cfg_default
    from dassl.data.datasets import build_dataset

    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{stem}.yaml"))
    cfg.merge_from_list(["DATASET.ROOT", str(root), "VERBOSE", False])
    return build_dataset(cfg)


def _look_at(path: str, remedy: str) -> tuple[str, str]:
    """Return what is wrong with an image, or nothing, and a fingerprint of its file."""
    from dassl.utils import ImageError, read_image

    try:
        read_image(path, upright=True, remedy=remedy)
    except ImageError as error:
        return str(error), path  # it equals no other
    return "", sha256_of(path)


def _classes(parts: dict[str, list[Datum]]) -> str:
    from tabulate import tabulate

    names = {item.label: item.classname for items in parts.values() for item in items}
    counts = {part: Counter(item.label for item in items) for part, items in parts.items()}
    rows = [[names[label], *(counts[part][label] for part in parts)] for label in sorted(names)]
    return tabulate(rows, ["class", *parts], tablefmt="simple", disable_numparse=[0]) + "\n"


def _few(parts: dict[str, list[Datum]]) -> Iterable[str]:
    """Yield what is said of numbers of images that are small."""
    counts = Counter(item.classname for item in parts.get("train", ()))
    few = [name for name, count in counts.items() if count < SHOTS]
    if few:
        fewest = min(few, key=counts.__getitem__)
        yield (
            f"Few training images: {counted(len(few), 'class has', 'classes have')} fewer than "
            f"{SHOTS}, which {SHOTS} shots take (fewest: {fewest}, {counts[fewest]}); all that "
            "there are are used then"
        )
    tests = parts.get("test", [])
    if 0 < len(tests) < FEW_TESTS:
        yield (
            f"Few test images: one of {len(tests)} is {100 / len(tests):.1f} points of accuracy; "
            "take more where methods are to be compared"
        )
    untested = {item.classname for items in parts.values() for item in items}
    untested -= {item.classname for item in tests}
    if tests and untested:
        names = ", ".join(sorted(untested))
        yield f"No test image: {counted(len(untested), 'class', 'classes')} ({names})"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def _equal(
    groups: Sequence[list[tuple[str, Datum]]], clashes: Sequence[list[tuple[str, Datum]]], base: str
) -> list[str]:
    """Return lines about equal files: in two classes, in training and test, else."""

    def shown(group: list[tuple[str, Datum]]) -> str:
        return " = ".join(f"{os.path.relpath(i.impath, base)} ({part})" for part, i in group)

    rest = [group for group in groups if group not in clashes]
    leaks = [group for group in rest if {"train", "test"} <= {part for part, _ in group}]
    rest = [group for group in rest if group not in leaks]
    lines: list[str] = []
    for kind, title in (
        (clashes, "The same file in two classes (keep one)"),
        (leaks, "The same file for training and test (the accuracy is too high)"),
        (rest, "The same file twice"),
    ):
        more = [f"and {len(kind) - MOST_SHOWN} more"] if len(kind) > MOST_SHOWN else []
        lines += _listed(title, [*map(shown, kind[:MOST_SHOWN]), *more])
    return lines
