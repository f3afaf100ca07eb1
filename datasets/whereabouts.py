"""Explain why a path of a data set is missing: what lies there instead, perhaps misnamed."""

from __future__ import annotations

import os

MOST_NAMED = 8
MOST_VISITED = 500  # folders that a search looks into
DEPTH = 3


def describe_contents(folder: str) -> str:
    """Return ``<folder> holds a/, b/, c.txt``: folders first, up to eight names."""
    try:
        folders, files = _entries(folder)
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror})"
    names = [*(f"{name}/" for name in folders), *files]
    if not names:
        return f"{folder} is empty"
    more = len(names) - MOST_NAMED
    tail = f" and {more} more" if more > 0 else ""
    return f"{folder} holds {', '.join(names[:MOST_NAMED])}{tail}"


def find_deeper(folder: str, path: str) -> str | None:
    """Return the folder below ``folder`` that holds the relative ``path``, if exactly one does.

    Up to three levels are searched, and no more than some hundred folders.
    """
    level, visited = [folder], 0
    for _ in range(DEPTH):
        below = []
        for parent in level:
            visited += 1
            if visited > MOST_VISITED:
                return None
            try:
                below += [os.path.join(parent, name) for name in _entries(parent)[0]]
            except OSError:
                continue
        found = [candidate for candidate in below if os.path.exists(os.path.join(candidate, path))]
        if found:
            return found[0] if len(found) == 1 else None
        level = below
    return None


def similar_folders(dataset_dir: str, wanted: str) -> list[str]:
    """List the folders in the data root that may be a data set under another name.

    Args:
        dataset_dir: its folder.
        wanted: a path in it.

    Returns:
        names that differ from the folder's by case, blanks, dashes or what follows, or that are
        the first part of ``wanted``.
    """
    root, name = os.path.split(dataset_dir)
    inner = wanted.split(os.sep)[0]

    def plain(text: str) -> str:
        return "".join(char for char in text.lower() if char.isalnum())

    try:
        folders = _entries(root)[0]
    except OSError:
        return []
    return [
        other
        for other in folders
        if other != name
        # many data sets call theirs images
        and (plain(other).startswith(plain(name)) or other == inner != "images")
    ]


def explain_missing(dataset_dir: str, wanted: str, layout: str) -> str:
    """Explain why a path of a data set is not found: what lies there instead, what is expected.

    Args:
        dataset_dir: folder of the data set.
        wanted: the path in it that was looked for.
        layout: what the folder is expected to hold.

    Returns:
        sentences without a full stop at the end; empty if there is nothing to say.
    """
    parts = []
    root = os.path.dirname(dataset_dir)
    wanted = os.path.normpath(wanted)
    if os.path.isdir(dataset_dir):
        parts.append(
            describe_contents(_nearest_folder(os.path.join(dataset_dir, wanted), dataset_dir))
        )
        place = find_deeper(dataset_dir, wanted)
        if place is not None:
            found = os.path.relpath(os.path.join(place, wanted), dataset_dir)
            parts.append(f"{found} should be {wanted}: move it there with what lies beside it")
    elif os.path.isdir(root):
        others = ", ".join(f"{name}/" for name in similar_folders(dataset_dir, wanted))
        parts.append(f"{root} holds {others}" if others else describe_contents(root))
    if layout:
        parts.append(f"expected in {os.path.basename(dataset_dir)}/: {layout}")
    return "; ".join(parts)


def _nearest_folder(path: str, top: str) -> str:
    """Return the folder of ``path``, or the first above it that exists, ``top`` at the latest."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder) and len(folder) > len(top):
        folder = os.path.dirname(folder)
    return folder


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """List the sorted names of the folders and of the other entries, hidden ones left out."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)
