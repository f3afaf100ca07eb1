"""Readers of what describes a user's own images: lists of images, and names of classes.

Every error is a ValueError that names the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PARTS = ("train", "val", "test")
#: other names of a part, as a folder and in a list
OTHER_NAMES = {"valid": "val", "validation": "val"}
COLUMNS = ("path", "label")


class Row(NamedTuple):
    """One image of a list; `part` is None when the list has no column `split`."""

    line: int
    path: str
    label: str
    part: str | None


def clean(name: str) -> str:
    """A class name as it is compared: composed Unicode, since macOS decomposes file names."""
    return unicodedata.normalize("NFC", name.strip())


def part_of(name: object) -> str | None:
    """The part of PARTS that a folder's name or a list's word means, in any letter case."""
    if not isinstance(name, str):
        return None
    name = name.strip().lower()
    return name if name in PARTS else OTHER_NAMES.get(name)


def read_image_list(path: str, folders: Sequence[str]) -> list[Row]:
    """Read a list with columns path, label and, optionally, split (see `part_of`).

    Args:
        path: a file ending in .csv, .tsv or .txt (separated by commas, semicolons or tabs, the
            first line names the columns), or in .jsonl (one JSON object per line).
        folders: those that its paths may be relative to. Where only that finds images, the
            backslashes of a list written on Windows are read as slashes.

    Returns:
        the rows; an image that is listed twice in the same way is kept once, with a note.

    Raises:
        ValueError: a missing column, an empty or unknown value, an image with two labels or in two
            parts, or a file that cannot be parsed.
    """
    suffix = os.path.splitext(path)[1].lower()
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".txt": _csv_rows, ".jsonl": _json_rows}
    if suffix not in readers:
        raise ValueError(f"{path}: a list of images ends in {', '.join(readers)}")
    try:
        rows = [_checked(path, line, fields) for line, fields in readers[suffix](path)]
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as separated text: {error}") from error
    if not rows:
        raise ValueError(f"{path} lists no image")
    return _without_repeats(path, _with_slashes(rows, folders))


def _not_utf8(path: str, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8")


def _csv_rows(path: str) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count))
        reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        if missing := [name for name in COLUMNS if name not in reader.fieldnames]:
            raise ValueError(
                f"{path} has no column {' and no column '.join(missing)}: its first line must name "
                f"path, label and perhaps split, and reads {header.strip()!r}"
            )
        for fields in reader:
            yield reader.line_num, fields


def _json_rows(path: str) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(fields, dict):
                raise ValueError(f'{path}, line {number} must be {{"path": ..., "label": ...}}')
            if isinstance(fields.get("label"), int):
                fields["label"] = str(fields["label"])
            yield number, fields


def _checked(path: str, line: int, fields: dict) -> Row:
    where = f"{path}, line {line}"
    for name in COLUMNS:
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {name} is {'empty' if not value else repr(value)}")
    part = None
    if "split" in fields:
        part = part_of(fields["split"])
        if part is None:
            raise ValueError(f"{where}: split is {fields['split']!r}, not train, val or test")
    return Row(line, os.path.normpath(fields["path"].strip()), clean(fields["label"]), part)


def _with_slashes(rows: list[Row], folders: Sequence[str]) -> list[Row]:
    def slashed(row: Row) -> Row:
        return row._replace(path=os.path.normpath(row.path.replace("\\", "/")))

    def exists(row: Row) -> bool:
        return any(os.path.isfile(os.path.join(folder, row.path)) for folder in folders)

    # one such row settles it: looking up every image would take long on a network drive
    if any("\\" in row.path and exists(slashed(row)) and not exists(row) for row in rows):
        return [slashed(row) for row in rows]
    return rows


def _without_repeats(path: str, rows: Sequence[Row]) -> list[Row]:
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.path, row)
        for what, one, other in (
            ("label", first.label, row.label),
            ("split", first.part, row.part),
        ):
            if one != other:
                raise ValueError(
                    f"{path} gives {row.path} two values of {what}: {one!r} in line {first.line}, "
                    f"{other!r} in line {row.line}"
                )
    if len(seen) < len(rows):
        print(f"Note: {path} lists {len(rows) - len(seen)} images more than once; one entry counts")
    return list(seen.values())


def read_class_names(path: str, classes: Sequence[str]) -> list[str]:
    """Read the names of classes from a file.

    Args:
        path: JSON (``{"class": "name", ...}`` or ``["name", ...]``), or else text: on each line
            either ``class<TAB>name`` or a name only, in the order of `classes`.
        classes: folder names or labels, in the order of their numbers.

    Returns:
        one name per class. A mapping may hold further classes.

    Raises:
        ValueError: a class without a name, another number of names, or a file of another form.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        names = json.loads(text) if path.lower().endswith(".json") else _names_of_text(path, text)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    values = names.values() if isinstance(names, dict) else names
    if not isinstance(names, dict | list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path} must map classes to names, or list names")
    if isinstance(names, list):
        if len(names) != len(classes):
            raise ValueError(
                f"{path} has {len(names)} names for {len(classes)} classes "
                f"({_some(classes)}): one per class, in this order, is needed"
            )
        names = dict(zip(classes, names, strict=True))
    names = {clean(key): clean(name) for key, name in names.items()}
    for name in classes:
        if not names.get(name):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; it names {near[0]!r}" if near and name not in names else ""
            raise ValueError(f"{path} has no name for the class {name!r}{hint}")
    return [names[name] for name in classes]


def _names_of_text(path: str, text: str) -> dict[str, str] | list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [line.split("\t", 1) for line in lines]
    if all(len(pair) == 1 for pair in pairs):
        return lines
    if alone := [pair[0] for pair in pairs if len(pair) == 1]:
        raise ValueError(f"{path}: some lines are class<TAB>name, but not {alone[0]!r}")
    return dict(pairs)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
