"""Files: written whole or not at all, and told apart by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
#: largest text that is read, in bytes; the lists of all ImageNet images take a tenth of it
MOST_TEXT = 1 << 29


def require_ordinary(path: str | Path, most: int | None = None) -> None:
    """Check that a path names an ordinary file, which opening and reading come to an end with.

    Args:
        path: the file, or a link to it.
        most: largest size in bytes, if there is one.

    Raises:
        OSError: it is a folder, a pipe or a device, is too large, or cannot be looked at.
    """
    name, status = os.fspath(path), os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file, but a pipe or a device", name)
    if most is not None and status.st_size > most:
        text = f"of {status.st_size:,} bytes, more than the {most:,} that such a file can have"
        raise OSError(errno.EFBIG, text, name)


def read_bytes(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """Return the content of an ordinary file of at most so many bytes.

    Raises:
        OSError: as :func:`require_ordinary`, or it cannot be read.
    """
    require_ordinary(path, most)
    return Path(path).read_bytes()


def as_text(content: bytes) -> str:
    """Return the text of a file's content; a mark of UTF-8 at its start is dropped.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not UTF-8 text (line {line}: {error})") from error


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


def is_temporary(name: str) -> bool:
    """Return whether a file or folder has a name that something has only while it is written."""
    start, mark, end = name.rpartition(_TEMPORARY)
    return bool(start and mark and re.fullmatch("[0-9a-f]{32}", end))


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in a folder, not in those below it.

    Args:
        folder: where no other process writes; it need not exist.
    """
    for path in Path(folder).glob(f"*{_TEMPORARY}*"):
        if is_temporary(path.name) and path.is_file():
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
