"""Readers of images and of archives."""

from __future__ import annotations

import functools
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .judging import CANARY
from .mutations import Random, changed_bytes, odd_text, write_hostile


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


@functools.cache
def png(
    width: int, height: int, mode: int = 2, rows: int | None = None, extra: bytes = b""
) -> bytes:
    """Return a PNG of zeros, in which as many rows as given really are."""
    per_row = 1 + width * {0: 1, 2: 3, 3: 1, 6: 4}[mode]
    packer = zlib.compressobj(9)
    data = b""
    for _ in range(height if rows is None else rows):
        data += packer.compress(bytes(per_row))
    data += packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    palette = _png_chunk(b"PLTE", bytes(30)) if mode == 3 else b""
    parts = [_png_chunk(b"IHDR", head), palette, extra, _png_chunk(b"IDAT", data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _png_chunk(b"IEND", b"")


@functools.cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count))


def _images() -> dict[str, bytes]:
    """Return valid images of many kinds: name of the file -> content."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (24, 30, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[274], exif[270], exif[306] = 6, "x" * 2000, "2001:01:01"
    grey16 = Image.fromarray(rng.integers(0, 65535, (24, 30)).astype(np.uint16))
    frames = [rgb, rgb.rotate(90, expand=False), rgb.transpose(Image.Transpose.ROTATE_180)]
    found = {}

    def keep(name: str, image: Image.Image, **options: Any) -> None:
        file = io.BytesIO()
        kind = Image.registered_extensions()[os.path.splitext(name)[1]]
        image.save(file, kind, **options)
        found[name] = file.getvalue()

    keep("rgb.png", rgb)
    keep("turned.jpg", rgb, exif=exif)
    keep("progressive.jpg", rgb, progressive=True, optimize=True)
    keep("cmyk.jpg", rgb.convert("CMYK"))
    keep("grey.png", rgb.convert("L"))
    keep("alpha.png", rgb.convert("RGBA"))
    keep("grey-alpha.png", rgb.convert("LA"))
    keep("palette.png", rgb.convert("P"), transparency=3)
    keep("bits.png", rgb.convert("1"))
    keep("grey16.png", grey16)
    keep("grey16.tiff", grey16)
    keep("float.tiff", rgb.convert("F"))
    keep("lab.tiff", rgb.convert("RGB"), compression="tiff_lzw")
    keep("cmyk.tiff", rgb.convert("CMYK"))
    keep("animated.gif", frames[0], save_all=True, append_images=frames[1:])
    keep("animated.webp", frames[0], save_all=True, append_images=frames[1:])
    keep("animated.png", frames[0], save_all=True, append_images=frames[1:])
    keep("rgb.bmp", rgb)
    keep("rgb.ppm", rgb)
    keep("grey.pgm", rgb.convert("L"))
    keep("turned.webp", rgb, exif=exif)
    return found


class ImageFile:
    """Image files."""

    def __init__(self, folder: Path) -> None:
        from dassl.config import get_cfg_default
        from dassl.data.transforms import build_transform

        self.images = _images()
        cfg = get_cfg_default()
        cfg.INPUT.SIZE = (16, 16)
        self.transform: Any = build_transform(cfg, is_train=False)

    def write(self, rng: Random | None, target: Path) -> None:
        if rng is None:
            (target / "rgb.png").write_bytes(self.images["rgb.png"])
            return
        name = rng.choice(sorted(self.images))
        valid = self.images[name]
        if rng.random() < 0.1:  # under the suffix of another kind
            name = os.path.splitext(name)[0] + rng.choice((".jpg", ".png", ".gif", ".tiff"))

        def change() -> bytes:
            if rng.random() < 0.15:
                return self._odd_png(rng)
            return changed_bytes(rng, valid)

        write_hostile(rng, target / name, valid, change, target.parent / CANARY)

    @staticmethod
    def _odd_png(rng: Random) -> bytes:
        kind = rng.randrange(7)
        if kind == 0:  # too many pixels to be meant, and few of them there
            side = rng.choice((20_000, 60_000, 2**31 - 1))
            return (
                png(side, side, rng.choice((0, 2, 3, 6)), rows=1)
                if side < 10**6
                else png(8, 8, rows=8).replace(
                    struct.pack(">II", 8, 8), struct.pack(">II", side, side), 1
                )
            )
        if kind == 1:
            return png(rng.choice((0, 1, 2**16)), rng.choice((0, 1)), 0, rows=1)
        if kind == 2:
            return png(3000, 3000, rng.choice((0, 2, 3, 6)))
        if kind == 3:  # texts that inflate to much
            return png(8, 8, extra=_png_chunk(b"zTXt", b"a\0\0" + _zeros(1 << 27)))
        if kind == 4:
            return png(8, 8, extra=_png_chunk(b"iCCP", b"a\0\0" + _zeros(1 << 27)))
        if kind == 5:
            return png(8, 8, extra=_png_chunk(b"eXIf", b"MM\0*" + rng.randbytes(200)))
        return png(8, 8, extra=_png_chunk(b"tEXt", b"a\0" + b"x" * 10**6) * 3)

    def read(self, target: Path) -> None:
        from dassl.utils import read_image

        found = [str(entry) for entry in target.iterdir()] or [str(target / "rgb.png")]
        image = read_image(found[0], upright=True)
        assert image.mode == "RGB"
        assert self.transform(image).shape == (3, 16, 16)
        with open(found[0], "rb") as file:
            assert file.read(1)


#: names of members that lead elsewhere, or that not every system takes
NAMES = (
    "../outside.txt",
    "../../outside.txt",
    "/{box}/absolute.txt",
    "images/../../outside.txt",
    "images/./a.txt",
    "images//b.txt",
    "images\\..\\..\\outside.txt",
    "..\\outside.txt",
    "C:\\outside.txt",
    "images/a.txt/b.txt",
    "images",
    "images/",
    ".",
    "..",
    "",
    "/",
    "images/" + "x" * 300,
    "images/" + "d/" * 600 + "x",
    "images/a\0b",
    "images/a\nb",
    "images/\u202etxt",
    "images/a.txt",
)


class _Archive:
    """An archive that datasets.prepare has fetched, and puts into the folder of a data set."""

    file: str

    def __init__(self, folder: Path) -> None:
        self.valid = self.pack([("images/a/1.txt", b"1"), ("images/b/2.txt", b"2" * 3000)])

    def pack(self, members: list[tuple[str, bytes]], rng: Random | None = None) -> bytes:
        raise NotImplementedError

    def write(self, rng: Random | None, target: Path) -> None:
        path = target / "downloads" / self.file
        if rng is None:
            path.parent.mkdir()
            path.write_bytes(self.valid)
            return
        box = str(target.parent).lstrip("/")

        def change() -> bytes:
            members = [("images/a/1.txt", b"1"), ("images/b/2.txt", b"2" * 3000)]
            for _ in range(rng.choice((1, 1, 3))):
                name = rng.choice((odd_text(rng), rng.choice(NAMES).format(box=box)))
                members.insert(rng.randrange(len(members) + 1), (name, b"outside"))
            if rng.random() < 0.2:
                members.append(members[rng.randrange(len(members))])
            return self.pack(members, rng)

        write_hostile(rng, path, self.valid, change, target.parent / CANARY)

    def read(self, target: Path) -> None:
        from datasets.preparation.fetching import problem_of
        from datasets.preparation.sources import RemoteFile
        from datasets.preparation.unpacking import lay_out

        file = RemoteFile(file=f"toy/{self.file}", place=("images",))
        path = target / "downloads" / self.file
        problem = problem_of(path, file)
        data = target / "data"
        try:
            lay_out(file, path, data)
        finally:
            left = os.listdir(data) if data.is_dir() else []
            assert set(left) <= {"images"}, left
            for folder, folders, files in os.walk(data):
                for name in (*folders, *files):
                    assert not os.path.islink(os.path.join(folder, name))
        if problem:
            raise ValueError(problem)


class _Zeros(io.RawIOBase):
    """So many zeros, as a file to read."""

    def __init__(self, count: int) -> None:
        self.left = count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.left)
        buffer[:size] = bytes(size)
        self.left -= size
        return size


_BOMBS: dict[tuple[str, int], bytes] = {}


def _kept(key: tuple[str, int], make: Callable[[], bytes]) -> bytes:
    if key not in _BOMBS:
        _BOMBS[key] = make()
    return _BOMBS[key]


class ZipArchive(_Archive):
    """Zip archives of data sets."""

    file = "archive.zip"

    def pack(self, members: list[tuple[str, bytes]], rng: Random | None = None) -> bytes:
        if rng is not None and rng.random() < 0.03:
            return _kept(("zip", 1 << 31), self._bomb)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                info = zipfile.ZipInfo("x")
                info.filename = name.encode("utf-8", "replace").decode()
                info.external_attr = 0o644 << 16
                if rng is not None and rng.random() < 0.15:
                    kind = rng.choice((0o120777, 0o010644, 0o020644, 0o060644, 0o104755))
                    info.external_attr = kind << 16
                    data = rng.choice((b"/etc/passwd", b"../..", b"images", b"."))
                try:
                    archive.writestr(info, data)
                except (ValueError, struct.error, UnicodeError):
                    continue
        data = out.getvalue()
        if rng is not None and rng.random() < 0.1:  # encrypted, as its flags say
            data = data.replace(
                b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
            )
        return data

    @staticmethod
    def _bomb() -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("images/zeros", "w", force_zip64=True) as file:
                for _ in range(1 << 7):
                    file.write(bytes(1 << 24))
        return out.getvalue()


class TarArchive(_Archive):
    """Tar archives of data sets, plain and compressed."""

    file = "archive.tar.gz"

    def pack(self, members: list[tuple[str, bytes]], rng: Random | None = None) -> bytes:
        if rng is not None and rng.random() < 0.03:
            return _kept(("tar", 1 << 31), self._bomb)
        out = io.BytesIO()
        how = "w:gz" if rng is None else rng.choice(("w:gz", "w:gz", "w:bz2", "w:xz", "w"))
        form = (
            tarfile.PAX_FORMAT
            if rng is None
            else rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        )
        with tarfile.open(fileobj=out, mode=how, format=form) as archive:  # type: ignore[call-overload]
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o644
                if rng is not None and rng.random() < 0.5:
                    self._make_odd(rng, info, archive)
                try:
                    archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
                except (ValueError, OverflowError, UnicodeError):
                    continue
        return out.getvalue()

    @staticmethod
    def _make_odd(rng: Random, info: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        kind = rng.randrange(6)
        if kind == 0:
            info.type = rng.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE))
            info.devmajor, info.devminor = 1, 5
        elif kind < 4:  # a link, and a file that is written through it
            info.type = rng.choice((tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE))
            info.name = "images/link"
            info.linkname = rng.choice(
                (
                    "../..",
                    "/",
                    "..",
                    ".",
                    "images/link",
                    "/etc",
                    "../../beside.txt",
                    "images/a/1.txt",
                )
            )
            through = tarfile.TarInfo("images/link/outside.txt")
            through.size = 3
            archive.addfile(info)
            archive.addfile(through, io.BytesIO(b"out"))
            info.name = "images/link2"
        elif kind == 4:
            info.mode = rng.choice((0o7777, 0, 0o4755, 0o200))
        else:
            info.uid, info.mtime = 2**31, rng.choice((-1, 2**40, 0))

    @staticmethod
    def _bomb() -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            info = tarfile.TarInfo("images/zeros")
            info.size = 1 << 31
            archive.addfile(info, io.BufferedReader(_Zeros(info.size), 1 << 20))
        return out.getvalue()
