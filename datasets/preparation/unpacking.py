"""Put the content of fetched files into the folders of data sets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from support.files import replacing

from .inspection import is_there
from .sources import RemoteFile

ARCHIVE_DEPTH = 4  # levels of folders in which the content of an archive is looked for


def lay_out(file: RemoteFile, path: Path, folder: Path) -> None:
    """Put the content of a fetched file into the data set's folder.

    Archives are unpacked in a temporary folder, from which each path is renamed into place; what
    is in place already is left alone. A single file takes the place of one of that name.

    Args:
        file: what it is.
        path: the fetched file.
        folder: the data set's folder.

    Raises:
        ValueError: the archive leads out of its folder, is damaged or lacks what it should hold.
        OSError: the content cannot be stored.
    """
    from dassl.utils import unpack_archive

    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_archive:
        with replacing(folder / file.place[0]) as temporary:
            shutil.copyfile(path, temporary)
        return
    temporary = folder / f".unpacking-{file.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        print(f"  unpacking {path}", flush=True)
        if file.unpack == "imagenet":
            _unpack_imagenet(path, temporary)
        else:
            unpack_archive(str(path), str(temporary))
        content = temporary
        if file.inner:
            content = temporary / "inner"
            unpack_archive(str(find(file.inner, temporary)), str(content))
        for target in file.place:
            if not is_there(folder / target):
                found = find(target, content)
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(found, folder / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find(path: str, folder: Path) -> Path:
    """Find the file or folder ``path`` in an unpacked archive, below as few folders as possible.

    Raises:
        ValueError: it is not there, or at several places.
    """
    level = [folder]
    for _ in range(ARCHIVE_DEPTH):
        found = [base / path for base in level if (base / path).exists()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"the archive holds {path} {len(found)} times")
        level = [entry for base in level for entry in base.iterdir() if entry.is_dir()]
    top = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
    raise ValueError(f"the archive holds no {path} (but {top or 'nothing'})")


def _unpack_imagenet(archive: Path, folder: Path) -> None:
    """Unpack ImageNet's archive of training or validation images to ``<folder>/images/<part>``."""
    from torchvision.datasets import imagenet

    folder.mkdir()
    if archive.name == imagenet.ARCHIVE_META["train"][0]:
        imagenet.parse_train_archive(folder, str(archive), "images/train")
        return
    devkit = archive.with_name(imagenet.ARCHIVE_META["devkit"][0])
    if not devkit.is_file():
        raise ValueError(f"{devkit} is needed too: it has the labels of {archive.name}")
    imagenet.parse_devkit_archive(folder, str(devkit))
    imagenet.parse_val_archive(
        folder, str(archive), imagenet.load_meta_file(folder)[1], "images/val"
    )
