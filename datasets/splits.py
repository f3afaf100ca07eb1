"""Splits of a data set into train, val and test: the file of one, and how one is generated."""

from __future__ import annotations

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dassl.data.datasets import Datum
from support.files import sha256_of, write_json
from support.words import counted

from .annotations import ClassNames, read_json, with_slashes, wrong_file
from .items import (
    PARTS,
    check_images,
    is_row,
    list_class_folders,
    list_images,
    make_item,
    to_rows,
)

#: seed of a generated split: it is the same for every run, and leaves the run's generators alone
SPLIT_SEED = 0
SPLIT_FILE = "a split file with lists train, val and test of [path, label, class name]"

Split = tuple[list[Datum], list[Datum], list[Datum]]


def read_split(filepath: str, path_prefix: str) -> Split:
    """Read a split file ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``.

    Args:
        filepath: the JSON file.
        path_prefix: folder its image paths are relative to. Where only that finds images, the
            backslashes of a list written on Windows are read as slashes.

    Raises:
        ValueError: the file is not such a split, or gives a class no name, or two names.
        FileNotFoundError: it lists images that do not exist.
    """
    print(f"Reading split from {filepath}")
    split = read_json(filepath, SPLIT_FILE)
    lists: dict[str, list] = {}
    for part in PARTS:
        found = split.get(part) if isinstance(split, dict) else None
        if not isinstance(found, list):
            raise wrong_file(filepath, SPLIT_FILE, f"it has no list {part!r}")
        lists[part] = found
    names = ClassNames()
    for part, rows in lists.items():
        for number, row in enumerate(rows, start=1):
            where = f"{filepath}, {part} image {number}"
            if not is_row(row):
                raise wrong_file(filepath, SPLIT_FILE, f"{part} image {number} reads {row!r:.200}")
            names.add(row[1], str(row[2]), where)
    paths = iter(with_slashes([row[0] for rows in lists.values() for row in rows], [path_prefix]))
    train, val, test = (
        [
            make_item(os.path.join(path_prefix, next(paths)), label, str(name))
            for _, label, name in rows
        ]
        for rows in lists.values()
    )
    check_images((*train, *val, *test), filepath)
    return train, val, test


def save_split(
    train: Sequence[Datum],
    val: Sequence[Datum],
    test: Sequence[Datum],
    filepath: str,
    path_prefix: str,
) -> None:
    """Write a split file with paths relative to ``path_prefix``."""
    lists = {"train": train, "val": val, "test": test}
    split = {part: to_rows(items, path_prefix) for part, items in lists.items()}
    write_json(split, filepath, indent=4)
    print(f"Saved split to {filepath}")


def read_and_split_data(
    image_dir: str,
    p_trn: float = 0.5,
    p_val: float = 0.2,
    ignored: Iterable[str] = (),
    new_cnames: Mapping[str, str] | None = None,
) -> Split:
    """Split the images of a folder with one folder per class; labels follow its sorted names.

    Args:
        image_dir: folder that holds the class folders.
        p_trn, p_val: shares of each class (0 to 1) for training and validation.
        ignored: names of folders that are not classes.
        new_cnames: class names by folder, for folders that have another name than their class.

    Raises:
        ValueError: there is no class folder, or one has too few images.
    """
    print(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and the rest test")
    ignored = set(ignored)
    folders = [name for name in list_class_folders(image_dir) if name not in ignored]
    items = []
    for label, folder in enumerate(folders):
        classname = (new_cnames or {}).get(folder, folder)
        items += list_images(os.path.join(image_dir, folder), label, classname)
    return split_by_class(items, p_trn, p_val)


def split_by_class(items: Iterable[Datum], p_trn: float = 0.5, p_val: float = 0.2) -> Split:
    """Shuffle each class and cut it into train, val and the rest, test.

    Raises:
        ValueError: a class has too few images to be in train and in test.
    """
    rng = random.Random(SPLIT_SEED)
    train, val, test = [], [], []
    for _, members in sorted(_by_label(items).items()):
        rng.shuffle(members)
        n_train, n_val = round(len(members) * p_trn), round(len(members) * p_val)
        if n_train < 1 or n_train + n_val >= len(members):
            raise ValueError(
                f"Class {members[0].classname!r} has {counted(len(members), 'image')}, too few to "
                f"split into train, val and test (in {os.path.dirname(members[0].impath)})"
            )
        train += members[:n_train]
        val += members[n_train : n_train + n_val]
        test += members[n_train + n_val :]
    return train, val, test


def split_trainval(
    trainval: Iterable[Datum], p_val: float = 0.2
) -> tuple[list[Datum], list[Datum]]:
    """Take the share ``p_val`` of each class (rounded) out of an official training list."""
    print(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
    rng = random.Random(SPLIT_SEED)
    train, val = [], []
    for _, members in sorted(_by_label(trainval).items()):
        rng.shuffle(members)
        n_val = round(len(members) * p_val)
        val += members[:n_val]
        train += members[n_val:]
    return train, val


def fingerprint(folder: str, *lists: Sequence[Datum] | None) -> str:
    """Return the SHA-256 of lists of images: order, paths below ``folder``, labels, class names."""
    digest = hashlib.sha256()
    prefix = os.path.join(folder, "")
    for items in (part or () for part in lists):
        lines = "".join([f"\n{i.impath}\t{i.label}\t{i.classname}" for i in items])
        lines = lines.replace("\n" + prefix, "\n").replace(os.sep, "/")
        # file names need not be UTF-8
        digest.update(lines.encode(errors="surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()


def write_origin(split_file: str, sources: str) -> None:
    """Note beside a split file that it was generated, and from what.

    Args:
        split_file: the split, as written.
        sources: :func:`fingerprint` of the generated lists.
    """
    write_json({"split_sha256": sha256_of(split_file), "sources": sources}, _origin(split_file))


def read_origin(split_file: str) -> str | None:
    """Return the ``sources`` that :func:`write_origin` noted.

    Returns:
        None for a split that was not generated here, or was changed since.
    """
    try:
        note = read_json(_origin(split_file), "a note on a split file")
        sources, generated = note["sources"], note["split_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sources if generated == sha256_of(split_file) else None


def _origin(split_file: str) -> str:
    return f"{os.path.splitext(split_file)[0]}.origin.json"


def _by_label(items: Iterable[Datum]) -> dict[int, list[Datum]]:
    groups = defaultdict(list)
    for item in items:
        groups[item.label].append(item)
    return groups
