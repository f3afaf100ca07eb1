"""`python -m datasets.prepare --check` on miniature data sets."""

from __future__ import annotations

import shutil

import pytest

from tests.datasets.miniatures import BY_STEM
from tests.datasets.mirror import STEMS, content_of, rows


@pytest.fixture
def prepared(published, command, tmp_path, mirror):
    """prepared(stem): folder of a data set made ready, and a function check(exit status).

    The function returns what --check prints, in which neither line breaks nor the network matter.
    """

    def make(stem):
        options = published(stem)
        assert command(stem, *options)[0] == 0
        shutil.rmtree(mirror.folder)

        def check(expected):
            before = content_of(tmp_path / "root")
            mirror.paths.clear()
            status, out, _ = command(stem, "--check", *options)
            assert status == expected, out
            assert content_of(tmp_path / "root") == before  # nothing is written
            assert not mirror.paths
            return " ".join(out.split())

        return tmp_path / "root" / BY_STEM[stem].folder, check

    return make


@pytest.mark.parametrize("stem", ["oxford_pets", "fgvc_aircraft", "imagenet_r"])
def test_check_of_a_complete_data_set(stem, prepared):
    _, check = prepared(stem)
    sizes = [f"{n}" for n in BY_STEM[stem].sizes if n]
    if stem == "imagenet_r":
        sizes = sizes[1:]
    line = f"{stem} ready {len(BY_STEM[stem].classnames)} {' '.join(sizes)}"
    assert check(0).endswith(line)


def test_check_without_the_split_file(prepared, build, command, tmp_path):
    folder, check = prepared("oxford_pets")
    split = folder / "split_zhou_OxfordPets.json"
    split.unlink()
    assert "ready, split will be generated (not the published one)" in check(0)
    build("oxford_pets", root=tmp_path / "root")
    assert split.is_file()
    assert "ready, split was generated here (not the published one)" in check(0)


def test_check_needs_no_annotation_beside_the_published_split(prepared):
    folder, check = prepared("oxford_pets")
    shutil.rmtree(folder / "annotations")
    assert "oxford_pets ready 3 24" in check(0)


@pytest.mark.parametrize("stem", STEMS)
def test_check_of_nothing(stem, command, tmp_path):
    status, out, _ = command(stem, "--check", "--root", str(tmp_path / "nowhere"))
    assert status == 1
    assert rows(out)[stem].split() == [stem, "missing"]
    assert f"python -m datasets.prepare {stem} --root {tmp_path / 'nowhere'}" in out
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("stem", "gone", "named"),
    [
        ("dtd", "images", "not there: images"),
        ("dtd", "images/banded/banded_0003.jpg", "1 of its 40 images do not exist"),
        ("sun397", "SUN397/a", "of its 42 images do not exist"),
        ("fgvc_aircraft", "variants.txt", "not there: variants.txt"),
        ("imagenet_r", "classnames.txt", "not there: classnames.txt"),
        ("imagenet_r", "imagenet-r/n01494475", "2 classes instead of 3"),
        ("imagenet_a", "imagenet-a/n01491361/n01491361_0.JPEG", "5 test images instead of 6"),
    ],
)
def test_check_of_an_incomplete_data_set(stem, gone, named, prepared):
    folder, check = prepared(stem)
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = check(1)
    assert f"{stem} incomplete: " in out
    assert named in out


def test_check_of_a_damaged_annotation(prepared):
    folder, check = prepared("stanford_cars")
    (folder / "split_zhou_StanfordCars.json").unlink()
    (folder / "devkit" / "cars_meta.mat").write_bytes(b"damaged")
    assert "stanford_cars incomplete: " in check(1)


def test_partly_unpacked_by_hand_is_named(prepared, command):
    """What is in place is not replaced: the way out is said."""
    folder, check = prepared("dtd")
    shutil.rmtree(folder / "images" / "banded")
    assert f"remove what is wrong below {folder}" in check(1)
