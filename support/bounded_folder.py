"""A folder of files that processes share and that keeps to a size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import filelock

from .disk import check_room, shown
from .files import replacing, require_ordinary

Content = TypeVar("Content")

#: folder and subject of the notes that this process has printed
_noted: set[tuple[Path, str]] = set()


class BoundedFolder:
    """Files of bounded size in all; the least recently used make room for new ones.

    Args:
        path: the folder; created when a file is saved. Processes share it.
        suffix: end of the names of the files that count; other files are left alone.
        limit: bytes that the files may take in all.
        wait_s: longest wait for another process that saves, in seconds.
        what: what the files hold, for the note that the first of them gets.
        limit_key, variable: config key of the limit, and environment variable that names another
            folder, for that note.
    """

    def __init__(
        self,
        path: Path,
        suffix: str,
        limit: int,
        wait_s: float = 0.0,
        *,
        what: str,
        limit_key: str,
        variable: str,
    ) -> None:
        self.path, self.suffix, self.limit, self.wait_s = path, suffix, limit, wait_s
        self.what, self.limit_key, self.variable = what, limit_key, variable

    def load(self, name: str, read: Callable[[Path], Content]) -> Content | None:
        """Read a file, which counts as used now.

        A damaged file counts as absent; a note says so once.

        Args:
            name: of the file.
            read: makes of the file what is returned; raises ``ValueError`` if it is damaged.

        Returns:
            What ``read`` returns, or None without an intact file.

        Raises:
            OSError: the folder cannot be used.
        """
        path = self.path / name
        try:
            require_ordinary(path, self.limit)
            content = read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            self.note_once(name, f"{path} cannot be used and is made anew: {error}")
            return None
        with suppress(OSError):  # a folder that others may only read
            os.utime(path)
        return content

    @contextmanager
    def locked(self) -> Iterator[Callable[[str, int, Callable[[Path], object]], None]]:
        """Keep other processes from saving.

        Yields:
            The function that saves a file, whole or not at all: ``save(name, size, write)``.
            ``size`` is that of the file in bytes, or about that. ``write`` gets a temporary name
            to write to, when there is room.

        Raises:
            filelock.Timeout: another process saves for longer than ``wait_s``; an ``OSError``.
            OSError: the folder cannot be used.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path / "lock", timeout=self.wait_s):
            yield self._save

    def note_once(self, subject: str, text: str) -> None:
        """Print a note, unless this process has printed one on this subject of the folder."""
        if (self.path, subject) not in _noted:
            _noted.add((self.path, subject))
            print(f"Note: {text}")

    def _save(self, name: str, size: int, write: Callable[[Path], object]) -> None:
        is_first = self._make_room(name, size)
        check_room(self.path / name, size)
        with replacing(self.path / name) as temporary:
            write(temporary)
        if is_first:
            self.note_once(
                "place",
                f"{self.what} are kept in {self.path} ({shown(size)} so far, at most "
                f"{shown(self.limit)}: {self.limit_key}); the environment variable {self.variable} "
                "names another folder",
            )

    def _make_room(self, name: str, size: int) -> bool:
        """Delete what killed processes left, and files other than ``name``, the oldest first.

        Returns:
            whether there was no file.
        """
        for left in self.path.glob(f"*{self.suffix}.tmp*"):
            left.unlink()
        others = [(f.stat(), f) for f in self.path.glob(f"*{self.suffix}") if f.name != name]
        others.sort(key=lambda entry: entry[0].st_mtime_ns)
        total = size + sum(stat.st_size for stat, _ in others)
        for stat, file in others:
            if total <= self.limit:
                break
            file.unlink()  # a process that has it mapped into memory keeps it
            total -= stat.st_size
        return not others and not (self.path / name).exists()
