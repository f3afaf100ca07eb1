"""Lists of images and their classes: make them, look classes up, check that the files exist."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from torchvision.datasets.folder import IMG_EXTENSIONS

from dassl.data.datasets import Datum

from .annotations import FETCH_AGAIN
from .whereabouts import describe_contents, explain_missing

GUIDE = "see docs/datasets.md for its layout and sources"
#: lists of a data set
PARTS = ("train", "val", "test")


def make_item(impath: str, label: int, classname: str) -> Datum:
    """Make a ``Datum`` without its check that the file exists.

    A million of these take minutes on a network drive; :func:`check_images` lists folders instead.
    """
    item = Datum.__new__(Datum)
    item._impath, item._label, item._domain, item._classname = impath, label, 0, classname
    return item


def make_items(folder: str, names: Iterable[str], label: int, classname: str) -> list[Datum]:
    """Make the items of one class whose files lie in one folder."""
    prefix = os.path.join(folder, "")
    return [make_item(prefix + name, label, classname) for name in names]


def list_folders(folder: str) -> list[str]:
    """List the sorted names of the folders in a folder, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_class_folders(folder: str, pattern: str = "<class>") -> list[str]:
    """List the sorted names of the class folders in a folder.

    Args:
        folder: the folder.
        pattern: how class folders are named, for the message.

    Raises:
        ValueError: there is none.
    """
    folders = list_folders(folder)
    if not folders:
        images = len(list_image_names(folder))
        found = f"which holds {images:,} images" if images else describe_contents(folder)
        raise ValueError(
            f"No class folder in {folder}, {found}: sort the images into {pattern}/ ({GUIDE})"
        )
    return folders


def list_image_names(folder: str) -> list[str]:
    """List the sorted names of the image files in a folder, hidden ones left out."""
    names = [n for n in os.listdir(folder) if n.lower().endswith(IMG_EXTENSIONS)]
    return sorted(name for name in names if not name.startswith("."))


def list_images(folder: str, label: int, classname: str) -> list[Datum]:
    """List the images of one class folder, sorted by name; other files are left out.

    Raises:
        ValueError: it has no image.
    """
    names = list_image_names(folder)
    if not names:
        raise ValueError(
            f"class folder {folder} has no image ({' '.join(IMG_EXTENSIONS)}); "
            f"{describe_contents(folder)}: put its images into it, or remove it"
        )
    return make_items(folder, names, label, classname)


def look_up(table: Mapping, key: str, annotation: str):
    """Return ``table[key]``.

    Raises:
        ValueError: the key is not in the table; names the file ``annotation`` that has it.
    """
    if key not in table:
        raise ValueError(
            f"{annotation} names the class {str(key)!r}, which is not in the class list: "
            f"{FETCH_AGAIN}"
        )
    return table[key]


def check_images(
    items: Iterable[Datum],
    annotation: str,
    guide: str = GUIDE,
    dataset_dir: str = "",
    layout: str = "",
) -> None:
    """Check that the images named by an annotation file exist.

    Args:
        items: the images.
        annotation: file that names them, for the message.
        guide: where the layout is described, for the message.
        dataset_dir: folder of the data set, by default that of the annotation.
        layout: what it is expected to hold, for the message.

    Raises:
        FileNotFoundError: one does not exist.
    """
    listings: dict[str, frozenset[str]] = {}
    missing, total = [], 0
    for item in items:
        total += 1
        folder, name = os.path.split(item.impath)
        if folder not in listings:
            names = os.listdir(folder) if os.path.isdir(folder) else ()
            listings[folder] = frozenset(names)
        # isfile settles the rare case of a file system that ignores letter case
        if name not in listings[folder] and not os.path.isfile(item.impath):
            missing.append(item.impath)
    if not missing:
        return
    what = (
        "none of its images exists, so it belongs to another data set or the images are not there"
        if len(missing) == total
        else f"{len(missing)} of its {total} images do not exist"
    )
    dataset_dir = dataset_dir or os.path.dirname(annotation)
    found = explain_missing(dataset_dir, os.path.relpath(missing[0], dataset_dir), layout)
    raise FileNotFoundError(f"{annotation}: {what} (first: {missing[0]}; {found}; {guide})")


def relative_path(path: str, prefix: str) -> str:
    """Return a path relative to a folder (``prefix``, which ends in a separator), with slashes."""
    # a slice: os.path.relpath would take half a minute on ImageNet
    path = path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, prefix)
    return path.replace(os.sep, "/")


def to_rows(items: Iterable[Datum], folder: str) -> list[tuple[str, int, str]]:
    """Return (path relative to ``folder`` with slashes, label, class name) of each item."""
    prefix = os.path.join(folder, "")
    return [(relative_path(item.impath, prefix), item.label, item.classname) for item in items]


def is_row(row: object) -> bool:
    """Return whether a JSON value is [path, label, class name]; the name may be a number."""
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 3:
        return False
    path, label, name = row
    kinds = isinstance(path, str) and isinstance(label, int) and isinstance(name, str | int)
    return kinds and not isinstance(label, bool) and not isinstance(name, bool)
