"""Safe unpacking of archives from sources that are not trusted."""

from __future__ import annotations

import io
import os.path as osp
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from support.files import require_ordinary

__all__ = ["check_archive", "unpack_archive"]

#: bytes that the content of an archive may take in any case, and how many times those of its file
ALWAYS, MOST_INFLATED = 1 << 28, 100
#: levels of folders within an archive
MOST_LEVELS = 50
_CHUNK_BYTES = 1 << 20


def unpack_archive(path: str, folder: str) -> None:
    """Unpack a zip or tar archive, plain or compressed; nothing is written outside of ``folder``.

    Args:
        path: the archive; a name that ends in ``.zip`` is a zip archive, any other a tar archive.
        folder: receives the content; created when missing.

    Raises:
        ValueError: the archive is damaged, its content is out of all proportion to its size, or one
            of its members is neither a file nor a folder (a link, a device), or would be written
            outside of ``folder``. What was unpacked before stays there.
        OSError: the content cannot be written, e.g. because the disk is full.
    """
    _with_archive(path, folder, _unpack_zip if path.endswith(".zip") else _unpack_tar)


def check_archive(path: str) -> None:
    """Read all of a zip or tar archive, and write nothing.

    Args:
        path: as for :func:`unpack_archive`.

    Raises:
        ValueError: it is damaged, or its content is out of all proportion to its size.
        OSError: it cannot be read.
    """
    is_zip = path.removesuffix(".part").endswith(".zip")  # of a download that is not done yet
    _with_archive(path, "", _test_zip if is_zip else _test_tar)


def _with_archive(path: str, folder: str, work: Callable[[str, str], None]) -> None:
    require_ordinary(path)
    try:
        work(path, folder)
    except Exception as error:  # a damaged, cut-off or foreign file raises nearly anything
        if isinstance(error, OSError) and error.errno is not None:  # the system's
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f'"{path}" is not a zip or tar archive that can be unpacked: {why}'
        ) from error


class _Room:
    """What the content of an archive may still take."""

    def __init__(self, path: str) -> None:
        self.size = osp.getsize(path)
        self.left = ALWAYS + MOST_INFLATED * self.size

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(
                f"its {self.size:,} bytes hold more than {MOST_INFLATED} times as many"
            )


def _lies_inside(name: str, folder: str) -> bool:
    if name.count("/") > MOST_LEVELS:  # what Python could neither walk through nor remove
        return False
    root = osp.realpath(folder)
    target = osp.realpath(osp.join(root, name))
    return target == root or target.startswith(osp.join(root, ""))


def _zip_members(archive: zipfile.ZipFile, path: str) -> list[zipfile.ZipInfo]:
    members, room = archive.infolist(), _Room(path)
    for member in members:
        room.take(member.file_size)
        if member.flag_bits & 1:
            raise zipfile.BadZipFile(f"{member.filename!r} is encrypted")
    return members


def _unpack_zip(path: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as archive:
        members = _zip_members(archive, path)
        for member in members:  # zipfile itself would write such members under another name
            mode = member.external_attr >> 16
            other = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
            if other or not _lies_inside(member.filename, folder):
                raise zipfile.BadZipFile(
                    f"{member.filename!r} is a link, or lies outside or too deep"
                )
        for member in tqdm(members, desc=osp.basename(path), unit=" files", disable=None):
            archive.extract(member, folder)


def _test_zip(path: str, _: str) -> None:
    with zipfile.ZipFile(path) as archive:
        _zip_members(archive, path)
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"its member {damaged!r} is damaged")


def _open_tar(path: str) -> tarfile.TarFile:
    """Open a tar archive with the compression that its first bytes tell.

    tarfile itself tries all of them, and that of xz reads any number of zeros.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return tarfile.open(path, "r:gz")
    if start.startswith(b"BZh"):
        return tarfile.open(path, "r:bz2")
    if start == b"\xfd7zXZ\0":
        return tarfile.open(path, "r:xz")
    return tarfile.open(path, "r:")


def _tar_members(archive: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    room = _Room(path)
    for member in archive:
        room.take(member.size)
        yield member


def _unpack_tar(path: str, folder: str) -> None:
    # Python before 3.10.12 and 3.11.4 has no filters; those of some later ones can be led outside
    # by links, of which there are none here
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with _open_tar(path) as archive:
        for member in tqdm(
            _tar_members(archive, path), desc=osp.basename(path), unit=" files", disable=None
        ):
            inside = _lies_inside(member.name, folder)
            if not inside or not (member.isfile() or member.isdir()):
                raise tarfile.ExtractError(
                    f"{member.name!r} is a link, or lies outside or too deep"
                )
            archive.extract(member, folder, set_attrs=False, **options)


def _test_tar(path: str, _: str) -> None:
    with _open_tar(path) as archive:
        for _member in _tar_members(archive, path):
            pass
        room, file = _Room(path), archive.fileobj
        if file is None or isinstance(file, io.BufferedReader):
            return
        while chunk := file.read(_CHUNK_BYTES):  # up to the checksum of the compression
            room.take(len(chunk))
