"""Decoded images kept in files that are mapped into memory, so that they are decoded once.

A file holds the images of one list in one form: as decoded, or after the fixed part of a test
transform. Its name holds a fingerprint of the list (path, size and time of change of every image),
the form, whether images were turned upright, the versions of the libraries that made it, and the
source of the code that reads and crops: whatever changes, another file is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import filelock
import numpy as np
from PIL import Image
from tqdm import tqdm

from dassl.utils import ImageError, hides_bars, print_result, tools
from support.bounded_folder import BoundedFolder
from support.files import sha256_of_all, user_cache

__all__ = ["DECODED", "CacheBusyError", "CacheError", "PixelFile", "cache_folder", "open_cache"]

CACHE_VARIABLE = "DASSL_CACHE"
DECODED = "decoded"
SUFFIX = ".pixels"
#: unreadable images that are listed
MOST_NAMED = 100
#: bytes of a shape in a file
SHAPE_BYTES = 3 * 8


class CacheError(Exception):
    """Why images cannot be cached; they can still be decoded each time."""


class CacheBusyError(CacheError):
    """Another process is writing to the cache; later it may work."""


def cache_folder() -> Path:
    """Return the folder of the cache: $DASSL_CACHE, else ``~/.cache/dassl``."""
    return user_cache(CACHE_VARIABLE, "dassl")


class PixelFile:
    """Sequence of uint8 arrays of three dimensions, read from one file mapped into memory.

    Processes that read the same file share its memory, which the system takes back when it is
    short. What is written into an array stays in this process.

    Args:
        path: file written by :meth:`write`.
        count: number of arrays in it.

    Raises:
        ValueError: if the file is not complete.
        OSError: if it cannot be read.
    """

    def __init__(self, path: str, count: int) -> None:
        self.path = path
        self.count = count
        size = os.path.getsize(path) - SHAPE_BYTES * count
        if size <= 0:
            raise ValueError(f"{path} is not complete")
        # copy-on-write because PyTorch wants writable arrays; asarray sheds np.memmap's overhead
        self.pixels = np.asarray(np.memmap(path, np.uint8, "c"))
        self.shapes = np.frombuffer(self.pixels[size:].tobytes(), "<i8").reshape(count, 3)
        self.starts = np.append(0, self.shapes.prod(1).cumsum())
        # of damaged shapes the product may overflow
        sensible = (self.shapes > 0).all() and self.shapes.astype(float).prod(1).sum() == size
        if not sensible or self.starts[-1] != size:
            raise ValueError(f"{path} is not complete")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(self.count)[index]
        start, end = self.starts[index : index + 2]
        return self.pixels[start:end].reshape(self.shapes[index])

    def __reduce__(self) -> tuple[type[PixelFile], tuple[str, int]]:
        return PixelFile, (self.path, self.count)  # a spawned worker maps the file itself

    @staticmethod
    def write(path: str | Path, arrays: Iterable[np.ndarray]) -> None:
        """Write the arrays' bytes, then their shapes."""
        shapes = []
        with open(path, "wb") as file:
            for array in arrays:
                file.write(np.ascontiguousarray(array).data)
                shapes.append(array.shape)
            file.write(np.array(shapes, "<i8").tobytes())


def open_cache(
    paths: Sequence[str],
    load: Callable[[str], np.ndarray],
    form: str,
    dataset: str,
    limit: int,
    threads: int = 1,
    upright: bool = False,
) -> PixelFile:
    """Open the file that holds some images, which is made first if it is missing.

    Other files of the cache, the least recently used first, make room for it.

    Args:
        paths: image files, at least one.
        load: reads one as a uint8 array of three dimensions; called by several threads.
        form: what ``load`` makes of a file: DECODED, or another text for arrays of one size.
        dataset: name for the file and for messages.
        limit: bytes that all files of the cache may take.
        threads: images read at the same time.
        upright: whether ``load`` applies the EXIF orientation.

    Raises:
        CacheError: if the images do not fit or the folder cannot be used.
        ImageError: if images cannot be read. The message names one; several are listed first, a
            line each.
    """
    try:
        if form == DECODED:
            # no more than what is decoded, and spares the look into each of a million files
            _total((os.path.getsize(path) for path in paths), limit)
        folder = BoundedFolder(
            cache_folder(),
            SUFFIX,
            limit,
            what="decoded images",
            limit_key="DATALOADER.CACHE_MB",
            variable=CACHE_VARIABLE,
        )
        name = f"{dataset}-{_fingerprint(paths, form, upright)}{SUFFIX}"

        def read(path: Path) -> PixelFile:
            return PixelFile(str(path), len(paths))

        found = folder.load(name, read)
        if found is not None:
            return found
        if form == DECODED:
            size = _total((_decoded_bytes(path, load) for path in paths), limit)
        else:
            size = _total([load(paths[0]).nbytes * len(paths)], limit)

        def write(temporary: Path) -> None:
            _check_free_space(folder.path, size)
            with tqdm(
                desc=f"caching {dataset}", total=len(paths), leave=False, disable=hides_bars()
            ) as bar:
                PixelFile.write(temporary, _load_all(paths, load, threads, bar))

        with folder.locked() as save:
            save(name, size, write)
        return read(folder.path / name)
    except ImageError as error:
        texts = _unreadable(paths, load)
        if len(texts) < 2:
            raise
        listed = "\n".join(f"  {text}" for text in texts)
        print_result(f"Unreadable images of {dataset}:\n{listed}")
        count = f"more than {MOST_NAMED}" if len(texts) > MOST_NAMED else str(len(texts))
        raise ImageError(
            f"{count} images of {dataset} cannot be read: the lines above, and in the log, name "
            "them and say what to do"
        ) from error
    except filelock.Timeout as error:
        raise CacheBusyError("another process is writing to the cache") from error
    except OSError as error:
        raise CacheError(str(error)) from error


def _fingerprint(paths: Sequence[str], form: str, upright: bool) -> str:
    rows = [[p, s.st_size, s.st_mtime_ns] for p, s in ((p, os.stat(p)) for p in paths)]
    made = [1, form, *tools.image_decoders(), version("torchvision")]  # 1: the layout of the file
    made.append(source_fingerprint())
    made += ["upright"] if upright else []
    return hashlib.sha256(json.dumps([made, rows]).encode()).hexdigest()[:32]


@functools.cache
def source_fingerprint() -> str:
    """Return the SHA-256 of the source files that decide on the pixels of a file."""
    files = [Path(tools.__file__), *sorted((Path(__file__).parent / "transforms").glob("*.py"))]
    return sha256_of_all(files)


def _decoded_bytes(path: str, load: Callable[[str], np.ndarray]) -> int:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # reading all of it names the file and what is wrong
        height, width = load(path).shape[:2]
    return 3 * width * height


def _total(sizes: Iterable[int], limit: int) -> int:
    """Return the sum of sizes; raise ``CacheError`` as soon as it exceeds the limit."""
    total = 0
    for size in sizes:
        total += size
        if total > limit:
            raise CacheError(f"they take more than DATALOADER.CACHE_MB, {_mb(limit)}")
    return total


def _check_free_space(folder: Path, size: int) -> None:
    """Raise CacheError if a file of that size would take more than half of what is free."""
    if 2 * size > shutil.disk_usage(folder).free:
        raise CacheError(f"they take {_mb(size)}, more than half of what is free in {folder}")


def _load_all(
    paths: Sequence[str], load: Callable[[str], np.ndarray], threads: int, bar: tqdm
) -> Iterator[np.ndarray]:
    """Read images in their order; no more than four per thread are held."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), 4 * threads):
            for array in pool.map(load, paths[start : start + 4 * threads]):
                yield array
                bar.update()


def _unreadable(paths: Sequence[str], load: Callable[[str], np.ndarray]) -> list[str]:
    """Return what is wrong with each unreadable image, so that all can be mended at once."""
    texts: list[str] = []
    for path in tqdm(
        paths, desc="looking for unreadable images", leave=False, disable=hides_bars()
    ):
        try:
            load(path)
        except ImageError as error:
            if len(texts) == MOST_NAMED:
                return [*texts, "and more"]
            texts.append(str(error))
    return texts


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
