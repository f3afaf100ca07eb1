"""Readers of what describes a user's own images: lists of images, and names of classes.

Every error is a ValueError that names the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from support.documents import parse_json
from support.hints import closest
from support.words import counted

from .annotations import Line, as_clip_reads, check_name, read_json, read_text, with_slashes
from .items import PARTS

#: other names of a part, as a folder and in a list
OTHER_NAMES = {"valid": "val", "validation": "val"}
#: columns that a list must have
COLUMNS = ("path", "label")


class Row(NamedTuple):
    """Image of a list; ``part`` is None when the list has no column ``split``."""

    line: int
    path: str
    label: str
    part: str | None


def composed(name: str) -> str:
    """Return a class name in composed Unicode, for comparison: macOS decomposes file names."""
    return unicodedata.normalize("NFC", name.strip())


def part_meant_by(name: object) -> str | None:
    """Return which of PARTS the name of a folder or a word of a list means, in any letter case."""
    if not isinstance(name, str):
        return None
    name = name.strip().lower()
    return name if name in PARTS else OTHER_NAMES.get(name)


def read_image_list(path: str, folders: Sequence[str]) -> list[Row]:
    """Read a list with columns path, label and, optionally, split (see ``part_meant_by``).

    Args:
        path: a file ending in .csv, .tsv or .txt (separated by commas, semicolons or tabs, the
            first line names the columns), or in .jsonl (one JSON object per line).
        folders: folders that its paths may be relative to. Where only that finds images, the
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
    text = read_text(path)
    try:
        rows = [_checked(path, line, fields) for line, fields in readers[suffix](path, text)]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as separated text: {error}") from error
    if not rows:
        raise ValueError(f"{path} lists no image")
    paths = with_slashes([row.path for row in rows], folders)
    rows = [
        row._replace(path=os.path.normpath(path)) for row, path in zip(rows, paths, strict=True)
    ]
    return _without_repeats(path, rows)


def _csv_rows(path: str, text: str) -> Iterator[tuple[int, dict]]:
    file = io.StringIO(text, newline="")
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


def _json_rows(path: str, text: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
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
    check_name(fields["label"], where)
    part = None
    if "split" in fields:
        part = part_meant_by(fields["split"])
        if part is None:
            raise ValueError(f"{where}: split is {fields['split']!r}, not train, val or test")
    return Row(line, os.path.normpath(fields["path"].strip()), composed(fields["label"]), part)


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
        repeated = counted(len(rows) - len(seen), "image")
        print(f"Note: {path} lists {repeated} more than once; one entry counts")
    return list(seen.values())


def read_class_names(path: str, classes: Sequence[str]) -> list[str]:
    """Read the names of classes from a file.

    Args:
        path: JSON (``{"class": "name", ...}`` or ``["name", ...]``), or else text: on each line
            either ``class<TAB>name`` or a name only, in the order of ``classes``.
        classes: folder names or labels, in the order of their numbers.

    Returns:
        one name per class. A mapping may hold further classes.

    Raises:
        ValueError: a class without a name, another number of names, or a file of another form.
    """
    if path.lower().endswith(".json"):
        names = read_json(path, "a file of class names")
    else:
        names = _names_of_text(path)
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
    names = {composed(key): composed(name) for key, name in names.items()}
    for name in classes:
        if not as_clip_reads(names.get(name, "")):
            near = closest(name, names)
            hint = f"; it names {near[0]!r}" if near and name not in names else ""
            raise ValueError(f"{path} has no name for the class {name!r}{hint}")
    return [names[name] for name in classes]


def _names_of_text(path: str) -> dict[str, str] | list[str]:
    texts = enumerate(read_text(path).splitlines(), start=1)
    lines = [Line.of(text, path, number) for number, text in texts if text.strip()]
    if not any("\t" in line for line in lines):
        return [check_name(str(line), line.where) for line in lines]
    names: dict[str, str] = {}
    for line in lines:
        key, tab, name = line.partition("\t")
        if not tab:
            raise ValueError(f"{line.where}: some lines are class<TAB>name, but not {str(line)!r}")
        if names.setdefault(key, name) != name:
            raise line.error(f"gives the class {key!r} a second name")
        check_name(name, line.where)
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
