"""Readers of the files that describe images or classes.

Every error is a ValueError that names the file, in a list also the line, says what is wrong there,
and what to do. A refused download often leaves a web page under the name of the file; the error
says so.
"""

from __future__ import annotations

import codecs
import io
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from support import files
from support.documents import parse_json

from .matlab import check_mat

#: kinds of characters that no name has: control characters, half characters, ends of lines
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
FETCH_AGAIN = "fetch it again, or put the right file in its place"


class Line(str):
    """Stripped line of a text file that knows its place."""

    #: ``<file>, line <number from 1>``
    where: str

    @classmethod
    def of(cls, text: str, path: str, number: int) -> Line:
        line = cls(text.strip())
        line.where = f"{path}, line {number}"
        return line

    def with_slashes(self) -> Line:
        """Return the line with slashes in place of backslashes, as in a path written on Windows."""
        line = Line(self.replace("\\", "/"))
        line.where = self.where
        return line

    def fields(self, form: str, maxsplit: int = -1) -> list[str]:
        """Split the line at blanks.

        Args:
            form: what it should consist of, such as ``<image> <class id>``; more may follow.
            maxsplit: as for :meth:`str.split`.

        Raises:
            ValueError: it has fewer parts than ``form``.
        """
        parts = self.split(None, maxsplit)
        if len(parts) < form.count("<"):
            raise self.error(f"reads {str(self)!r}, not {form}")
        return parts

    def number(self, text: str) -> int:
        """Read a part of the line as a number.

        Raises:
            ValueError: it is not a whole number from 0 on.
        """
        if not text.isdecimal() or len(text) > 18:
            raise self.error(f"has {text!r} where a number from 0 on is expected")
        return int(text)

    def error(self, why: str) -> ValueError:
        """Return an error that names the line; ``why`` goes on after its number."""
        return ValueError(f"{self.where} {why}: correct the line, or {FETCH_AGAIN}")


class ClassNames:
    """Class names by label; each label has one name, which is not empty."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._where: dict[int, str] = {}

    def add(self, label: int, name: str, where: str) -> None:
        """Add the name of a class.

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
    """Return a class name.

    Args:
        name: the name.
        where: file and line that give it.

    Raises:
        ValueError: there is nothing in it to read.
    """
    if not as_clip_reads(name):
        raise ValueError(f"{where}: the class name {name!r} is empty: give the class a name")
    if foreign := next((char for char in name if unicodedata.category(char) in _NO_TEXT), None):
        raise ValueError(
            f"{where}: the class name {name!r} holds {foreign!r}, which is no text: correct it, or "
            "name its class in another way"
        )
    return name


def as_clip_reads(name: str) -> str:
    """Return a class name as CLIP reads it: no underscores, capital letters or needless blanks."""
    return " ".join(name.replace("_", " ").split()).lower()


def label_lines(lines: Iterable[Line]) -> dict[str, int]:
    """Number the classes of a list that names one per line.

    Returns:
        ``{class: label}``, labels from 0 in the order of the lines.

    Raises:
        ValueError: a class is there twice, or its name is empty.
    """
    first: dict[str, Line] = {}
    for line in lines:
        if line in first:
            raise line.error(f"names the class {str(line)!r} again, after {first[line].where}")
        check_name(line, line.where)
        first[line] = line
    return {str(name): label for label, name in enumerate(first)}


def read_text(path: str) -> str:
    """Read a UTF-8 text file.

    Raises:
        ValueError: it is empty, a web page, or not UTF-8.
    """
    content = _read_bytes(path)
    if b"\0" in content and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise wrong_file(path, "a text file", "it is binary")
    try:
        return files.as_text(content)
    except ValueError as error:
        raise ValueError(f"{path} is {error}: save it as UTF-8") from error


def read_lines(path: str) -> list[Line]:
    """Read the lines of a text file without empty ones and ``#`` comments; see ``read_text``."""
    # splitlines would also split at rarer characters, which a name may hold
    texts = read_text(path).replace("\r\n", "\n").split("\n")
    lines = [Line.of(text, path, number) for number, text in enumerate(texts, start=1)]
    return [line for line in lines if line and not line.startswith("#")]


def read_json(path: str, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        ValueError: it is not JSON, or an object in it has a key twice.
    """
    text = read_text(path)
    try:
        return parse_json(text, _without_repeats)
    except _RepeatedKeyError as error:
        raise wrong_file(path, what, str(error)) from error
    except ValueError as error:
        raise wrong_file(path, what, f"it is not valid JSON ({error})") from error


def read_mat(path: str, variable: str, fields: Sequence[str] = ()) -> Any:
    """Read a variable of a MATLAB file as an array of one dimension.

    Args:
        path: the file.
        variable: its name.
        fields: what its records must have.

    Raises:
        ValueError: the file is not a MATLAB file, or has no such variable or field.
    """
    import numpy as np
    from scipy.io import loadmat

    what = f"a MATLAB file with {variable!r}"
    content = _read_bytes(path)
    try:
        check_mat(content)
        table = loadmat(io.BytesIO(content), squeeze_me=True)
    except Exception as error:  # other content makes scipy raise nearly anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise wrong_file(path, what, f"it cannot be read ({why})") from error
    if variable not in table:
        names = ", ".join(sorted(name for name in table if not name.startswith("__")))
        raise wrong_file(path, what, f"it holds {names or 'nothing'}")
    values = np.atleast_1d(table[variable]).ravel()
    present = values.dtype.names or ()
    if missing := [field for field in fields if field not in present]:
        raise wrong_file(
            path,
            f"{what} of {', '.join(fields)}",
            f"it has no {' and no '.join(missing)}, but {', '.join(present) or 'no fields'}",
        )
    return values


def whole_number(value: Any) -> int | None:
    """Return a number of a MATLAB file, possibly a float there, as int; None if it is not whole."""
    return int(value) if isinstance(value, int | float) and value == value // 1 else None


def wrong_file(path: str, what: str, why: str) -> ValueError:
    """Return the error of a file that is not what it should be."""
    return ValueError(f"{path} is not {what}: {why}; {FETCH_AGAIN}")


def with_slashes(paths: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Read backslashes of paths as slashes where a list was written on Windows.

    Args:
        paths: as listed.
        folders: folders that the paths may be relative to.

    Returns:
        the paths; with slashes if one of them exists with slashes only.
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
    content = files.read_bytes(path)
    if not content.strip():
        raise ValueError(f"{path} is empty: {FETCH_AGAIN}")
    start = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, as a download leaves it that was refused or asked for a click: "
            f"{FETCH_AGAIN}"
        )
    return content
