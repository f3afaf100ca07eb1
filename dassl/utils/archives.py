"""Safe unpacking of archives from sources that are not trusted."""

from __future__ import annotations

import os.path as osp
import stat
import tarfile
import zipfile
import zlib
from gzip import BadGzipFile
from lzma import LZMAError

from tqdm import tqdm

__all__ = ["DAMAGED_ARCHIVE", "unpack_archive"]

#: what reading a damaged, cut-off or foreign file as a zip or tar archive raises
DAMAGED_ARCHIVE = (
    *(zipfile.BadZipFile, tarfile.TarError, BadGzipFile, LZMAError, zlib.error),
    *(EOFError, NotImplementedError),
)


def unpack_archive(path: str, folder: str) -> None:
    """Unpack a zip or tar archive, plain or compressed; nothing is written outside of ``folder``.

    Args:
        path: the archive; a name that ends in ``.zip`` is a zip archive, any other a tar archive.
        folder: receives the content; created when missing.

    Raises:
        ValueError: the archive is damaged, or one of its members would be written, or is a link
            that leads, outside of ``folder``. What was unpacked before stays there.
        OSError: the content cannot be written, e.g. because the disk is full.
    """
    try:
        (_unpack_zip if path.endswith(".zip") else _unpack_tar)(path, folder)
    except DAMAGED_ARCHIVE as error:
        raise ValueError(
            f'"{path}" is not a zip or tar archive that can be unpacked: {error}'
        ) from error


def _lies_inside(name: str, folder: str) -> bool:
    root = osp.realpath(folder)
    target = osp.realpath(osp.join(root, name))
    return target == root or target.startswith(osp.join(root, ""))


def _unpack_zip(path: str, folder: str) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:  # zipfile itself would write such members under another name
            link = stat.S_ISLNK(member.external_attr >> 16)
            if link or not _lies_inside(member.filename, folder):
                raise zipfile.BadZipFile(f"{member.filename!r} is a link or lies outside")
        for member in tqdm(members, desc=osp.basename(path), unit=" files"):
            archive.extract(member, folder)


def _unpack_tar(path: str, folder: str) -> None:
    with tarfile.open(path) as archive:
        members = tqdm(archive, desc=osp.basename(path), unit=" files")
        if hasattr(tarfile, "data_filter"):
            for member in members:
                archive.extract(member, folder, filter="data")
            return
        # Python before 3.10.12 and 3.11.4 has no filters
        for member in members:
            if not _lies_inside(member.name, folder) or not (member.isfile() or member.isdir()):
                raise tarfile.ExtractError(f"{member.name!r} is a link or lies outside")
        archive.extractall(folder)
