"""Files: written whole or not at all, and told apart by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
#: what stands between the name of a file and 32 hexadecimal digits while it is written
_TEMPORARY = ".tmp"


def user_cache(variable: str, name: str) -> Path:
    """Return a cache folder: the one that an environment variable names, else ``~/.cache/<name>``.

    Where the user has no home, it is one at the root, which only an administrator can make: what
    cannot be kept is computed or downloaded anew.
    """
    given = os.environ.get(variable)
    home = os.path.expanduser("~")
    if given:
        return Path(os.path.expanduser(given))
    return Path(os.sep if home == "~" else home, ".cache", name)


@contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Let a file appear complete or not at all.

    Args:
        path: file to create or replace; its folder is created when missing.
        durable: also where the power fails: wait until the disk has the file, then its name.

    Yields:
        A temporary name in the same folder. The file written there is renamed at the end of the
        block, and removed if the block raises.

    Raises:
        IsADirectoryError: ``path`` is a folder, or ends as the path of one does.
        OSError: the file cannot be written; names ``path``, not the temporary file.
    """
    name, path = os.fspath(path), Path(path)
    if os.path.isdir(path) or name.endswith(("/", os.sep)):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # unique also among machines that share the folder
    temporary = path.with_name(f"{path.name}{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
        if durable:
            _wait_for_disk(temporary)
        os.replace(temporary, path)
        if durable:
            with suppress(OSError):  # not every system can, and the file is there
                _wait_for_disk(path.parent)
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _wait_for_disk(path: Path) -> None:
    # Windows flushes only what is open for writing
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in a folder, not in those below it.

    Args:
        folder: where no other process writes; it need not exist.
    """
    for path in Path(folder).glob(f"*{_TEMPORARY}*"):
        name, _, end = path.name.rpartition(_TEMPORARY)
        if name and re.fullmatch("[0-9a-f]{32}", end) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(text: str, path: str | Path, durable: bool = False) -> None:
    """Write UTF-8 text in the way of :func:`replacing`."""
    with replacing(path, durable) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(value: Any, path: str | Path, indent: int | None = None) -> None:
    """Write JSON in the way of :func:`replacing`.

    Args:
        value: what to write.
        path: file to create or replace.
        indent: blanks per level; one line when not given.

    Raises:
        TypeError, ValueError: JSON cannot express ``value``.
    """
    write_text(json.dumps(value, indent=indent), path)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_all(paths: Iterable[str | Path]) -> str:
    """Return a SHA-256 of the contents of several files and their order, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()
