"""The check of one's own images, on folders with every fault that it looks for."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from datasets.preparation.own_images import MOST_SHOWN


@pytest.fixture
def photos(tmp_path):
    """A folder with the images of three classes, 4, 10 and 40."""
    rng = np.random.default_rng(0)
    for name, count in (("barn_owl", 4), ("kingfisher", 10), ("robin", 40)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02}.png")
    return tmp_path


def checked(command, folder):
    status, out, err = command("imagefolder", "--root", str(folder), "--check")
    assert err == "" and {path.name for path in folder.iterdir()} <= {
        *("barn_owl", "kingfisher", "robin")
    }, "nothing is written, and no bar is shown"
    return status, out


def test_sound_images_are_counted(photos, command):
    status, out = checked(command, photos)
    assert status == 0
    words = [line.split() for line in out.splitlines()]
    assert ["imagefolder", "ready", "3", "27", "11", "16"] in words
    assert ["barn_owl", "2", "1", "1"] in words and ["robin", "20", "8", "12"] in words
    assert "2 classes have fewer than 16, which 16 shots take (fewest: barn_owl, 2)" in out
    assert "one of 16 is 6.2 points" in out
    assert "unreadable" not in out and "same file" not in out


def test_what_is_wrong_is_listed_a_line_each(photos, command):
    for name in ("01", "02"):
        (photos / "robin" / f"{name}.png").write_bytes(b"")
    shutil.copy(photos / "robin" / "05.png", photos / "kingfisher" / "ours.png")
    for number in range(3, 40):  # most of them in more than one part
        shutil.copy(photos / "robin" / f"{number:02}.png", photos / "robin" / f"z{number}.png")
    (photos / "robin" / "new.heic.txt").write_text("no image")
    status, out = checked(command, photos)
    assert status == 1
    assert "incomplete: 2 unreadable images, 1 image in two classes" in out
    lines = out.splitlines()
    start = lines.index("2 unreadable images:")
    for name, line in zip(("01.png", "02.png"), sorted(lines[start + 1 : start + 3]), strict=True):
        assert name in line and "the file is empty: replace it by a sound copy" in line
    clash = lines.index("The same file in two classes (keep one):") + 1
    for part in ("robin/05.png", "robin/z5.png", "kingfisher/ours.png"):
        assert part in lines[clash]
    start = lines.index("The same file for training and test (the accuracy is too high):")
    end = lines.index("The same file twice:")
    assert 0 < end - start - 1 <= MOST_SHOWN + 1
    assert all(" (train)" in line and " (test)" in line for line in lines[start + 1 : end])
    assert "Note: not read in class folders, since they are no images: 1 file" in out


def test_a_folder_without_images_says_what_is_expected(tmp_path, command):
    status, out, _ = command("imagefolder", "--root", str(tmp_path / "nowhere"), "--check")
    assert status == 1 and "not found" in " ".join(out.split())
