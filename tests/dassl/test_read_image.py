"""Image files of every kind a folder may hold: what is read, and what is refused in one line."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from dassl.utils import ImageError, MissingImageError, read_image
from dassl.utils.tools import decodable

ROOT = Path(__file__).parents[2]
GREY_16 = np.array([[0, 1, 128, 129], [257, 32768, 65407, 65535]], dtype=np.uint16)
GREY_8 = np.array([[0, 0, 0, 1], [1, 128, 255, 255]], dtype=np.uint8)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_ordinary(folder, name):
    path = folder / name
    image = Image.fromarray(noise(20, 30, 3))
    mode, _, suffix = name.rpartition(".")
    image = image.convert(mode) if mode != "RGB" else image
    image.save(path, **({"quality": 90} if suffix in ("jpg", "webp") else {}))
    return path


@pytest.mark.parametrize(
    "name",
    ["RGB.png", "RGB.jpg", "RGB.webp", "RGB.bmp", "RGB.tif", "L.png", "L.jpg", "1.png"]
    + ["P.png", "P.gif", "CMYK.jpg", "CMYK.tif", "RGB.ppm"],
)
def test_ordinary_images_are_what_pillow_converts(tmp_path, name):
    path = write_ordinary(tmp_path, name)
    with Image.open(path) as plain:
        expected = np.asarray(plain.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = read_image(str(path))
    assert image.mode == "RGB" and image.size == (30, 20)
    assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 4 2 65535\n" + GREY_16.astype(">u2").tobytes())
    else:
        Image.fromarray(GREY_16).save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.tolist() == np.stack([GREY_8] * 3, axis=-1).tolist()


def test_16_bit_colour_keeps_the_high_byte(tmp_path):
    """Pillow reads such a file as 8 bits by itself."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    pixels = bytes([0]) + struct.pack(">3H", 0x1200, 0x34FF, 0xFFFF)
    header = struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )
    assert read_image(str(path)).getpixel((0, 0)) == (0x12, 0x34, 0xFF)


def transparent(kind):
    """A 2 x 1 image, its left pixel transparent above (10, 20, 30) or 10, its right one opaque."""
    if kind == "RGBA":
        pixels = [(10, 20, 30, 0), (40, 50, 60, 255)]
    elif kind == "LA":
        pixels = [(10, 0), (40, 255)]
    elif kind == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        return image
    else:
        pixels = [(10, 20, 30), (40, 50, 60)]
    image = Image.new(kind, (2, 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


@pytest.mark.parametrize(
    ("kind", "suffix", "options"),
    [
        ("RGBA", "png", {}),
        ("RGBA", "webp", {"lossless": True, "exact": True}),
        ("LA", "png", {}),
        ("P", "png", {"transparency": 0}),
        ("P", "gif", {"transparency": 0}),
        ("RGB", "png", {"transparency": (10, 20, 30)}),
    ],
)
def test_transparent_pixels_are_white(tmp_path, kind, suffix, options):
    path = tmp_path / f"x.{suffix}"
    transparent(kind).save(path, **options)
    image = read_image(str(path))
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 0)) == ((40, 40, 40) if kind == "LA" else (40, 50, 60))


def test_opaque_alpha_changes_nothing(tmp_path):
    pixels = noise(20, 30, 3)
    Image.fromarray(np.dstack([pixels, np.full((20, 30), 255, np.uint8)])).save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "x.png"))), pixels)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"x.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert read_image(str(path)).getpixel((4, 4)) == (255, 0, 0)


# EXIF orientation -> what the stored pixels (height, width, ...) look like to a viewer
SEEN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("name", ["RGB.jpg", "RGB.png", "RGB.webp", "L.png", "P.png", "RGB.avif"])
def test_exif_orientation_is_applied_on_request_only(tmp_path, name):
    if name.endswith("avif") and not decodable([".avif"]):
        pytest.skip("this Pillow reads no AVIF")
    plain = np.asarray(read_image(str(write_ordinary(tmp_path, name))))
    for orientation, seen in SEEN.items():
        path = tmp_path / f"{orientation}.{name}"
        image = Image.open(tmp_path / name)
        image.save(path, exif=oriented(orientation), quality=90)
        stored = np.asarray(read_image(str(path)))
        assert stored.shape == plain.shape
        assert np.array_equal(np.asarray(read_image(str(path), upright=True)), seen(stored))


def test_a_tiff_is_turned_once(tmp_path):
    """Pillow turns these by itself."""
    pixels = noise(8, 16, 3)
    for orientation, seen in SEEN.items():
        path = tmp_path / f"{orientation}.tif"
        Image.fromarray(pixels).save(path, exif=oriented(orientation))
        for upright in (False, True):
            assert np.array_equal(np.asarray(read_image(str(path), upright=upright)), seen(pixels))


def test_turned_images_of_other_kinds(tmp_path):
    Image.fromarray(GREY_16).save(tmp_path / "grey.png", exif=oriented(6))
    pixels = np.asarray(read_image(str(tmp_path / "grey.png"), upright=True))
    assert pixels[..., 0].tolist() == SEEN[6](GREY_8).tolist()
    transparent("P").save(tmp_path / "p.png", transparency=0, exif=oriented(6))
    image = read_image(str(tmp_path / "p.png"), upright=True)
    assert [image.getpixel((0, y)) for y in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


def exif_block(*entries):
    """EXIF with these (tag, type, count, value) entries, values as they are."""
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + fields + struct.pack("<I", 0)


ORIENTATION = (0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (exif_block(ORIENTATION), (8, 16)),
        (exif_block(ORIENTATION, (0x8825, 4, 1, 99999), (0x8769, 4, 1, 99999)), (8, 16)),
        (exif_block(ORIENTATION, (0x010F, 3, 1, 7)), (8, 16)),  # the maker's name is a number
        (exif_block((0x0112, 3, 1, 77)), (16, 8)),
        (exif_block(ORIENTATION)[:20], (16, 8)),
        (b"Exif\0\0nothing of the kind", (16, 8)),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_no_harm(tmp_path, exif, size):
    Image.fromarray(noise(8, 16, 3)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(str(tmp_path / "x.jpg"), upright=True).size == size


def test_a_heic_photo_is_read_where_pillow_heif_is_installed(tmp_path):
    if not decodable([".heic"]):
        pytest.skip("pillow-heif is not installed")
    Image.new("RGB", (64, 32), (200, 30, 30)).save(tmp_path / "x.heic")
    image = read_image(str(tmp_path / "x.heic"), upright=True)
    assert image.size == (64, 32) and image.getpixel((9, 9))[0] > 150


def test_paths_in_any_script(tmp_path):
    folder = tmp_path / "Žluťoučký kůň" / "猫"
    folder.mkdir(parents=True)
    for name in ("große Katze.png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (3, 2), (1, 2, 3)).save(folder / name)
        assert read_image(str(folder / name)).getpixel((0, 0)) == (1, 2, 3)


# --- files that cannot be used ------------------------------------------------------------------


def damage(path, kind):
    path.unlink(missing_ok=True)
    if kind == "half":
        Image.fromarray(noise(64, 64, 3)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_bytes(b"<html>not found</html>")
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avif"])
@pytest.mark.parametrize("suffix", ["heic", "jpg"])
def test_a_photo_without_a_decoder_is_called_so(tmp_path, brand, suffix):
    """Also under the name of another format, as phones and chat programs hand them on."""
    (tmp_path / f"x.{suffix}").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    with pytest.raises(ImageError, match=r"HEIC or AVIF photo.* install pillow-heif"):
        read_image(str(tmp_path / f"x.{suffix}"))


SAYS = {"half": "damaged", "text": "not an image", "empty": "is empty", "gone": "no image file"}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("kind", SAYS)
def test_a_bad_file_is_named(tmp_path, suffix, kind):
    path = tmp_path / f"x.{suffix}"
    damage(path, kind)
    with pytest.raises(ImageError) as caught:
        read_image(str(path), "Food101")
    text = str(caught.value)
    assert f'"{path}" of data set Food101' in text and SAYS[kind] in text and "\n" not in text
    assert isinstance(caught.value, FileNotFoundError) == (kind == "gone")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("L", (1000, 1000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    with pytest.raises(ImageError, match=r"x\.png.*1000000 pixels.*Make it smaller"):
        read_image(str(path))


@pytest.mark.parametrize("pixels", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 1 << 20)])
def test_pixels_without_a_known_scale_are_refused(tmp_path, pixels):
    Image.fromarray(pixels.astype(np.float32 if pixels.dtype.kind == "f" else np.int32)).save(
        tmp_path / "x.tif"
    )
    with pytest.raises(ImageError, match=r"x\.tif.*save it with 8 or 16 bits"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    damage(tmp_path / "x.png", "text")
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        read_image(str(tmp_path / "x.png"))


class Files:
    """Data set of image files, read by a loader."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return read_image(str(self.paths[index]), "Own").size


@pytest.mark.parametrize("kind", SAYS)
def test_a_worker_process_passes_the_message_on(tmp_path, kind):
    path = tmp_path / "x.jpg"
    damage(path, kind)
    with pytest.raises(ImageError) as here:
        Files([path])[0]
    with pytest.raises(type(here.value)) as there:
        list(DataLoader(Files([path]), num_workers=1))
    assert str(there.value) == str(here.value)
    copy = pickle.loads(pickle.dumps(here.value))
    assert (type(copy), str(copy)) == (type(here.value), str(here.value))


def test_error_types():
    assert issubclass(ImageError, ValueError) and issubclass(MissingImageError, FileNotFoundError)


def test_a_run_ends_with_one_line(tmp_path):
    for name in ("cat", "dog"):
        for part, count in (("train", 3), ("val", 1), ("test", 2)):
            folder = tmp_path / "Tiere äöü" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(noise(32, 32, 3)).save(folder / f"{number}.jpg")
    bad = tmp_path / "Tiere äöü" / "test" / "dog" / "1.jpg"
    damage(bad, "half")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--root", tmp_path / "Tiere äöü", "--seed", "1"]
        + ["--trainer", "MMLoP", "--output-dir", tmp_path / "out"]
        + ["--dataset-config-file", ROOT / "configs/datasets/imagefolder.yaml"]
        + ["--config-file", ROOT / "configs/trainers/MMLoP/tiny.yaml"]
        + ["OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "2", "USE_CUDA", "False"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == done.stderr.splitlines()[-1:]
    assert f'cannot read image "{bad}" of data set ImageFolder' in lines[0]
    assert "replace it by a sound copy, or remove it" in lines[0]  # it came from no archive
    # the training before it is kept
    assert (tmp_path / "out" / "prompt_learner" / "model.pth.tar-1").is_file()
