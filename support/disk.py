"""Space on disks: what is left, and what a series of runs will take."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from .words import counted


def free_bytes(path: str | Path) -> int:
    """Return the free bytes of the disk that a path is on, or will be on."""
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(path: str | Path, size: float, what: str = "it") -> None:
    """Check that a disk has room, before anything is written to it.

    Args:
        path: file or folder that will be written.
        size: bytes that it will take.
        what: what takes them, for the message.

    Raises:
        OSError: it has not (``ENOSPC``).
    """
    free = free_bytes(path)
    if size > free:
        text = f"{what} takes {shown(size)}, and {shown(free)} are free on its disk"
        raise OSError(errno.ENOSPC, text, str(path))


def folder_bytes(folder: str | Path) -> int:
    """Return the bytes of all files below a folder; those that vanish meanwhile do not count."""
    total, folders = 0, [os.fspath(folder)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except OSError:
                    continue
    return total


def sweep_shortage(
    output: str | Path, n_runs: int, finished: Sequence[str | Path] = (), bytes_each: float = 2e6
) -> str | None:
    """Say when the runs of a sweep will not fit on the disk of its output folder.

    Args:
        output: where the folders of the runs lie.
        n_runs: runs that are still to be done.
        finished: folders of finished runs of the sweep: the others are taken to be as large, in
            the middle.
        bytes_each: size of a run's folder where none is finished; about 12 bytes per trained
            parameter and checkpoint, and a megabyte for its logs.

    Returns:
        One line, or None where they fit.
    """
    sizes = [folder_bytes(folder) for folder in finished]
    each = median(sizes) if sizes else bytes_each
    needed, free = n_runs * each, free_bytes(output)
    if needed <= free:
        return None
    runs = counted(n_runs, "run needs", "runs need")
    return (
        f"{runs} about {shown(needed)} ({shown(each)} each), and {shown(free)} are free on the "
        f"disk of {output}: free some, or choose another output folder"
    )


def shown(size: float) -> str:
    """Return a number of bytes for people to read."""
    units: Iterable[tuple[float, str]] = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
    for unit, name in units:
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
