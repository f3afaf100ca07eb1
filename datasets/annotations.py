"""How every file that describes images or classes is read.

An error is a ValueError that names the file, for a list the line, what is wrong there, and what to
do. A download that was refused often leaves a web page under the name of the file, so that is told
apart.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

AGAIN = "fetch it again, or put the right file in its place"


class Line(str):
    """A stripped line of a text file, and `where` it stands: ``<file>, line <number from 1>``."""

    where: str

    @classmethod
    def of(cls, text: str, path: str, number: int) -> Line:
        line = cls(text.strip())
        line.where = f"{path}, line {number}"
        return line

    def with_slashes(self) -> Line:
        """The line with slashes for the backslashes of a path written on Windows."""
        line = Line(self.replace("\\", "/"))
        line.where = self.where
        return line

    def fields(self, form: str, maxsplit: int = -1) -> list[str]:
        """Its parts between blanks.

        Args:
            form: its parts, such as ``<image> <class id>``; more may follow.
            maxsplit: as for :meth:`str.split`.

        Raises:
            ValueError: it has fewer parts than `form`.
        """
        parts = self.split(None, maxsplit)
        if len(parts) < form.count("<"):
            raise self.wrong(f"reads {str(self)!r}, not {form}")
        return parts

    def number(self, text: str) -> int:
        """A part of the line as a whole number; ValueError if it is none."""
        if not text.isdecimal():
            raise self.wrong(f"has {text!r} where a number from 0 on is expected")
        return int(text)

    def wrong(self, why: str) -> ValueError:
        return ValueError(f"{self.where} {why}: correct the line, or {AGAIN}")


class ClassNames:
    """Class names by label, checked as they come: each label has one name that is not empty."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._where: dict[int, str] = {}

    def add(self, label: int, name: str, where: str) -> None:
        """Note the name of a class.

        Args:
            label: class index.
            name: its name.
            where: file and line that give it.

        Raises:
            ValueError: the name is empty, or the label has another one already.
        """
        if label not in self.names:
            self.names[label], self._where[label] = check_name(name, where), where
        known = self.names[label]
        if known != name:
            check_name(name, where)
            raise ValueError(
                f"{where}: the class with label {label} is named {name!r}, and {known!r} in "
                f"{self._where[label]}: give it one name"
            )


def check_name(name: str, where: str) -> str:
    """The class name; ValueError if there is nothing in it to read."""
    if not as_read(name):
        raise ValueError(f"{where}: the class name {name!r} is empty: give the class a name")
    return name


def as_read(name: str) -> str:
    """What CLIP reads of a class name: no underscores, no capital letters."""
    return " ".join(name.replace("_", " ").split()).lower()


def numbered(lines: Iterable[Line]) -> dict[str, int]:
    """Classes in the order of a list that names one per line: ``{class: label}``.

    Raises:
        ValueError: a class is there twice, or its name is empty.
    """
    first: dict[str, Line] = {}
    for line in lines:
        if line in first:
            raise line.wrong(f"names the class {str(line)!r} again, after {first[line].where}")
        check_name(line, line.where)
        first[line] = line
    return {str(name): label for label, name in enumerate(first)}


def read_text(path: str) -> str:
    """Content of a UTF-8 text file.

    Raises:
        ValueError: it is empty, a web page, or not UTF-8.
    """
    content = _read_bytes(path)
    if b"\0" in content and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise is_not(path, "a text file", "it is binary")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 text (line {line}: {error}): save it as UTF-8"
        ) from error


def read_lines(path: str) -> list[Line]:
    """Lines of a text file, without empty ones and `#` comments; errors as of `read_text`."""
    # splitlines would also split at rarer characters, which a name may hold
    texts = read_text(path).replace("\r\n", "\n").split("\n")
    lines = [Line.of(text, path, number) for number, text in enumerate(texts, start=1)]
    return [line for line in lines if line and not line.startswith("#")]


def read_json(path: str, what: str) -> Any:
    """Content of a JSON file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        ValueError: it is no JSON, or an object in it has a key twice.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise is_not(path, what, f"it is not valid JSON ({error})") from error
    except RecursionError as error:
        raise is_not(path, what, "nested too deeply") from error
    except _RepeatedKeyError as error:
        raise is_not(path, what, str(error)) from error


def read_mat(path: str, variable: str, fields: Sequence[str] = ()) -> Any:
    """One variable of a MATLAB file, as an array of one dimension.

    Args:
        path: the file.
        variable: its name.
        fields: those that its records must have.

    Raises:
        ValueError: the file is no MATLAB file, or has no such variable or field.
    """
    import numpy as np
    from scipy.io import loadmat

    what = f"a MATLAB file with {variable!r}"
    content = _read_bytes(path)
    try:
        table = loadmat(io.BytesIO(content), squeeze_me=True)
    except Exception as error:  # other content makes scipy raise nearly anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise is_not(path, what, f"it cannot be read ({why})") from error
    if variable not in table:
        names = ", ".join(sorted(name for name in table if not name.startswith("__")))
        raise is_not(path, what, f"it holds {names or 'nothing'}")
    values = np.atleast_1d(table[variable]).ravel()
    present = values.dtype.names or ()
    if missing := [field for field in fields if field not in present]:
        raise is_not(
            path,
            f"{what} of {', '.join(fields)}",
            f"it has no {' and no '.join(missing)}, but {', '.join(present) or 'no fields'}",
        )
    return values


def whole_number(value: Any) -> int | None:
    """A number of a MATLAB file, which may be stored as a float; None if it is not a whole one."""
    return int(value) if isinstance(value, int | float) and value == value // 1 else None


def is_not(path: str, what: str, why: str) -> ValueError:
    """The error of a file that is not what it should be."""
    return ValueError(f"{path} is not {what}: {why}; {AGAIN}")


def with_slashes(paths: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Paths of a list written on Windows, whose backslashes are read as slashes.

    Args:
        paths: as listed.
        folders: those that they may be relative to; the paths are returned as they are unless only
            slashes find one of them.
    """

    def exists(path: str) -> bool:
        return any(os.path.isfile(os.path.join(folder, path)) for folder in folders)

    def slashed(path: str) -> str:
        return path.replace("\\", "/")

    # one such path settles it: looking up every image would take long on a network drive
    if any("\\" in path and exists(slashed(path)) and not exists(path) for path in paths):
        return [slashed(path) for path in paths]
    return list(paths)


class _RepeatedKeyError(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"it has {repeated!r} twice")
    return table


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read()
    if not content.strip():
        raise ValueError(f"{path} is empty: {AGAIN}")
    start = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, as a download leaves it that was refused or asked for a click: "
            f"{AGAIN}"
        )
    return content
