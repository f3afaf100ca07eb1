"""A user's own images: layouts, lists, class names, the split, shots, and runs on them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import train
from dassl.data import DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.engine import build_trainer
from dassl.utils import SettingError
from dassl.utils.tools import PHOTO_SUFFIXES, decodable
from datasets import imagefolder
from datasets.image_lists import read_class_names, read_image_list
from datasets.imagefolder import split_by_fraction
from tests.datasets.miniatures import write_image
from trainers import Predictor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(build, tmp_path):
    """own(*opts, **node): the data set at `tmp_path`; `node` sets keys of DATASET.IMAGEFOLDER."""

    def make(*opts, **node):
        pairs = [x for key, value in node.items() for x in (f"DATASET.IMAGEFOLDER.{key}", value)]
        return build("imagefolder", *pairs, *opts)

    return make


def fill(folder, count, first=0, suffix="png"):
    for number in range(first, first + count):
        write_image(folder / f"{number:02d}.{suffix}")


def lists(dataset):
    return [
        [(item.impath, item.label, item.classname) for item in items]
        for items in (dataset.train_x, dataset.val, dataset.test)
    ]


def paths(items):
    return {item.impath for item in items}


# --- the split ----------------------------------------------------------------------------------

shares = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).filter(lambda pair: sum(pair) < 0.99)
names = st.lists(st.text("aé_/.ß0", min_size=1), min_size=1, max_size=40, unique=True)


@given(names, shares, st.randoms())
def test_every_image_is_in_one_part(paths, fractions, rng):
    parts = split_by_fraction(paths, *fractions)
    assert sorted(x for part in parts for x in part) == sorted(paths)
    train, val, test = map(len, parts)
    p_val, p_test = fractions
    assert train >= 1
    assert val == round(p_val * len(paths)) or train == 1
    assert test == 0 if p_test == 0 or len(paths) == 1 else test >= 1
    assert test in (1, round(p_test * len(paths))) or train == 1
    shuffled = rng.sample(paths, len(paths))
    assert split_by_fraction(shuffled, *fractions) == parts


def test_the_split_is_the_same_everywhere():
    """Recorded: a change would move users' training images into their test lists."""
    paths = [f"cat/{number}.jpg" for number in range(10)]
    train, val, test = split_by_fraction(paths, 0.2, 0.3)
    assert [int(path[4]) for path in train] == [2, 4, 6, 7, 9]
    assert [int(path[4]) for path in val] == [1, 5]
    assert [int(path[4]) for path in test] == [0, 3, 8]
    decomposed = [unicodedata.normalize("NFD", f"café/{n}.jpg") for n in range(10)]
    composed = [unicodedata.normalize("NFC", path) for path in decomposed]
    for one, other in zip(
        split_by_fraction(decomposed, 0.2, 0.3), split_by_fraction(composed, 0.2, 0.3), strict=True
    ):
        assert [p[-5] for p in one] == [p[-5] for p in other]


def test_split_does_not_depend_on_seed_listing_or_folder(own, build, tmp_path, monkeypatch):
    for name in ("b", "a"):
        fill(tmp_path / "one" / name, 10)
    first = lists(own(FOLDER="one"))
    assert [len(items) for items in first] == [10, 4, 6]
    listdir = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: random.sample(listdir(path), len(listdir(path)))
    )
    (tmp_path / "one").rename(tmp_path / "two")
    random.seed(5)
    again = lists(own("SEED", 9, FOLDER=str(tmp_path / "two")))
    assert [
        [(path.replace("two", "one"), label, name) for path, label, name in items]
        for items in again
    ] == first


def test_fractions_are_options(own, tmp_path):
    fill(tmp_path / "a", 10)
    fill(tmp_path / "b", 1)
    dataset = own(VAL_FRACTION=0, TEST_FRACTION=0.5)
    assert (len(dataset.train_x), len(dataset.test)) == (6, 5)
    assert dataset.val == dataset.test


@pytest.mark.parametrize("shots", [-1, 16])
def test_all_images_are_for_training(own, tmp_path, capsys, shots):
    for name in "ab":
        fill(tmp_path / name, 6)
    dataset = own("DATASET.NUM_SHOTS", shots, VAL_FRACTION=0, TEST_FRACTION=0)
    assert paths(dataset.train_x) == {str(path) for path in tmp_path.rglob("*.png")}
    assert dataset.val is None and dataset.test is None
    out = capsys.readouterr().out
    assert f"Images of {tmp_path}: train 12, no test (TEST_FRACTION 0)\n" in out
    assert ("no class has 16 training images: all are used, 6 per class" in out) == (shots == 16)
    new = own("DATASET.SUBSAMPLE_CLASSES", "new", VAL_FRACTION=0, TEST_FRACTION=0)
    assert new.classnames == ["b"] and len(new.train_x) == 6 and new.test is None


def test_no_test_may_leave_validation_images(own, tmp_path):
    fill(tmp_path / "a", 10)
    dataset = own(TEST_FRACTION=0)
    assert (len(dataset.train_x), len(dataset.val), dataset.test) == (8, 2, None)


def test_given_parts_keep_all_training_images(own, tmp_path):
    write_parts(tmp_path, val=0)
    dataset = own(VAL_FRACTION=0)
    assert paths(dataset.train_x) == {str(p) for p in (tmp_path / "train").rglob("*.png")}
    assert paths(dataset.test) == {str(p) for p in (tmp_path / "test").rglob("*.png")}


def test_one_image_per_class_leaves_no_test(own, tmp_path):
    for name in "ab":
        fill(tmp_path / name, 1)
    with pytest.raises(ValueError, match=r"no class has two images.*TEST_FRACTION 0") as caught:
        own()
    assert str(tmp_path) in str(caught.value)
    assert len(own(TEST_FRACTION=0).train_x) == 2


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.3), (0.2, -0.1), (0.0, 1.5)])
def test_fractions_that_leave_no_images(own, tmp_path, val, test):
    fill(tmp_path / "a", 10)
    with pytest.raises(ValueError, match=r"VAL_FRACTION .* TEST_FRACTION .* sum below 1"):
        own(VAL_FRACTION=val, TEST_FRACTION=test)


# --- folders ------------------------------------------------------------------------------------


def write_parts(root, train=5, val=2, test=3):
    for part, count in (("train", train), ("val", val), ("test", test)):
        for name in ("golden_retriever", "Žirafa", "猫"):
            if count:
                fill(root / part / name, count)


def test_parts_are_what_the_folders_say(own, tmp_path, capsys):
    write_parts(tmp_path)
    dataset = own()
    assert dataset.classnames == ["golden_retriever", "Žirafa", "猫"]
    assert dataset.lab2cname == dict(enumerate(dataset.classnames))
    for part, items in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        assert paths(items) == {str(p) for p in (tmp_path / part).rglob("*.png")}
        for item in items:
            assert Path(item.impath).parent.name == item.classname
    assert "train 15, val 6, test 9\n" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["valid", "Validation", "VAL"])
def test_validation_has_other_names_in_folders_and_in_lists(own, tmp_path, word, capsys):
    write_parts(tmp_path)
    expected = lists(own())
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in tmp_path.rglob("*.png")]
    rows = [f"{row},{row.partition('/')[0].replace('val', word)}" for row in sorted(rows)]
    (tmp_path / "own.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    assert lists(own(LIST="own.csv")) == expected
    (tmp_path / "val").rename(tmp_path / word)
    capsys.readouterr()
    renamed = [(path.replace(f"/{word}/", "/val/"), *rest) for path, *rest in lists(own())[1]]
    assert renamed == expected[1]
    assert "train 15, val 6, test 9\n" in capsys.readouterr().out
    fill(tmp_path / "dev-val" / "x", 1)
    own()
    assert f"only train, {word}, test are read, not dev-val" in capsys.readouterr().out


def test_two_folders_of_one_part(own, tmp_path):
    write_parts(tmp_path)
    fill(tmp_path / "valid" / "猫", 1)
    with pytest.raises(ValueError, match="val and valid, which both mean val: keep one"):
        own()


def test_missing_parts_come_from_the_training_images(own, tmp_path, capsys):
    write_parts(tmp_path, train=10, val=0)
    dataset = own()
    assert [len(items) for items in lists(dataset)] == [24, 6, 9]
    assert not paths(dataset.train_x) & paths(dataset.val)
    assert paths(dataset.test) == {str(p) for p in (tmp_path / "test").rglob("*.png")}
    assert "train 24, val 6 (split off), test 9\n" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["test folder", "all images"])
def test_images_for_evaluation_only(own, tmp_path, layout, capsys):
    write_parts(tmp_path, train=0, val=0)
    node = {}
    if layout == "all images":
        (tmp_path / "test").rename(tmp_path / "animals")
        node = {"FOLDER": "animals", "TEST_FRACTION": 1.0}
    dataset = own("DATASET.NUM_SHOTS", 1, **node)
    assert len(dataset.test) == len(dataset.train_x) == 9
    assert "evaluation only" in capsys.readouterr().out
    assert not list(tmp_path.rglob("split_fewshot"))
    new = own("DATASET.SUBSAMPLE_CLASSES", "new", **node)
    assert new.classnames == ["猫"] and len(new.test) == 3


def test_a_class_may_be_called_train(own, tmp_path):
    for name in ("car", "train", "plane"):
        fill(tmp_path / name, 4)
    assert own().classnames == ["car", "plane", "train"]


def test_numbers_are_ordered_by_value(own, tmp_path):
    for name in ("10", "9", "1"):
        fill(tmp_path / name, 3)
    assert own().classnames == ["1", "9", "10"]


def test_shots_and_their_cache(own, tmp_path, capsys):
    for name in ("a", "b"):
        fill(tmp_path / name, 20)
    first = own("DATASET.NUM_SHOTS", 4)
    assert [item.label for item in first.train_x] == [0] * 4 + [1] * 4
    assert (tmp_path / "split_fewshot" / "shot_4-seed_1.json").is_file()
    capsys.readouterr()
    # the cache's folder is no class
    assert lists(own("DATASET.NUM_SHOTS", 4)) == lists(first)
    assert "Loading preprocessed" in capsys.readouterr().out


def test_fewer_images_than_shots(own, tmp_path, capsys):
    fill(tmp_path / "a", 2)
    fill(tmp_path / "b", 20)
    dataset = own("DATASET.NUM_SHOTS", 4)
    assert [item.label for item in dataset.train_x] == [0] + [1] * 4
    assert "1 of 2 classes have fewer than 4 training images" in capsys.readouterr().out


def test_classes_without_test_images_are_noted(own, tmp_path, capsys):
    write_parts(tmp_path)
    fill(tmp_path / "train" / "zebra", 3)
    assert own().num_classes == 4
    out = capsys.readouterr().out
    assert "1 of 4 classes have no val image (first: 'zebra')" in out
    assert "1 of 4 classes have no test image (first: 'zebra')" in out


def test_what_is_not_read_is_noted(own, tmp_path, capsys):
    write_parts(tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "train" / "猫" / "notes.txt").touch()
    (tmp_path / "train" / "猫" / ".DS_Store").touch()
    fill(tmp_path / "__MACOSX", 1)
    own()
    out = capsys.readouterr().out
    assert "only train, val, test are read, not masks" in out
    assert f"since they are no images: 1 file or folder (first: {tmp_path}" in out
    assert "notes.txt" in out and "MACOSX" not in out


@pytest.fixture
def no_photo_decoders(monkeypatch):
    """As where neither pillow-heif is installed nor Pillow has libavif."""
    kept = [suffix for suffix in imagefolder.EXTENSIONS if suffix not in PHOTO_SUFFIXES]
    monkeypatch.setattr(imagefolder, "EXTENSIONS", tuple(kept))
    monkeypatch.setattr(imagefolder, "UNDECODED", PHOTO_SUFFIXES)


def test_photos_that_cannot_be_decoded_are_named(own, tmp_path, capsys, no_photo_decoders):
    write_parts(tmp_path)
    for name in ("IMG_1.HEIC", "IMG_2.avif", "notes.txt"):
        (tmp_path / "train" / "猫" / name).touch()
    assert len(own().train_x) == 15
    out = capsys.readouterr().out
    first = tmp_path / "train" / "猫" / "IMG_1.HEIC"
    assert f"Note: 2 .avif, .heic files are not read (first: {first}): install pillow-heif" in out
    assert "since they are no images: 1 file or folder" in out
    for image in (tmp_path / "train" / "猫").glob("*.png"):
        image.unlink()
    with pytest.raises(ValueError, match=r"has no image.*\.heic files .*install pillow-heif"):
        own()


@pytest.mark.skipif(not decodable([".avif"]), reason="this Pillow reads no AVIF")
def test_photos_are_read_where_pillow_can(own, tmp_path):
    for number in range(4):
        write_image(tmp_path / "a" / f"{number}.avif")
    assert sum(map(len, lists(own()))) == 4


def test_photos_from_phones_are_turned_upright(dataset_cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    for number in range(4):
        Image.new("RGB", (60, 40)).save(tmp_path / "a" / f"{number}.jpg", exif=exif)
    for pairs, size in (([], (40, 60)), (["INPUT.EXIF", False], (60, 40))):
        cfg = dataset_cfg("imagefolder", *pairs)
        images = DatasetWrapper(cfg, build_dataset(cfg).train_x)
        assert {images[n]["img"].size for n in range(len(images))} == {size}
    assert not dataset_cfg("food101").INPUT.EXIF


@pytest.mark.parametrize("suffix", ["gif", "JPG", "webp", "bmp", "tiff", "jfif"])
def test_image_files_by_their_names(own, tmp_path, suffix):
    for number in range(4):
        write_image(tmp_path / "a" / f"{number}.png")
        (tmp_path / "a" / f"{number}.png").rename(tmp_path / "a" / f"{number}.{suffix}")
    assert sum(map(len, lists(own()))) == 4


def spoil(root, kind):
    write_parts(root)
    if kind == "empty class":
        (root / "train" / "猫" / "x").mkdir()
        for image in (root / "train" / "猫").glob("*.png"):
            image.rename(image.with_suffix(".heic"))
    elif kind == "same name":
        for part in ("train", "test"):
            fill(root / part / "Golden retriever", 1)
    elif kind == "same name across parts":
        (root / "test" / "golden_retriever").rename(root / "test" / "golden retriever")
    elif kind == "only in test":
        fill(root / "test" / "zebra", 1)
    elif kind == "two spellings":
        fill(root / "train" / unicodedata.normalize("NFD", "Žirafa"), 1)
    elif kind == "no classes":
        for part in ("train", "val", "test"):
            for image in (root / part).rglob("*.png"):
                image.rename(root / part / f"{image.parent.name}{image.name}")
            for folder in (root / part).iterdir():
                if folder.is_dir():
                    folder.rmdir()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("empty class", ["train/猫 has no image", "holds 6 others, such as", "00.heic"]),
        ("same name", ["'Golden retriever' and 'golden_retriever'", "same name"]),
        ("same name across parts", ["'golden retriever' and 'golden_retriever'", "same name"]),
        ("only in test", ["'zebra' has no training image"]),
        ("two spellings", ["composed and in decomposed Unicode"]),
        ("no classes", ["must hold a folder per class", "train, val without class folders"]),
    ],
)
def test_folders_that_cannot_be_read(own, tmp_path, kind, parts):
    spoil(tmp_path, kind)
    with pytest.raises(ValueError) as caught:
        own()
    for part in parts:
        assert part in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_folders_at_all(own, build, tmp_path):
    with pytest.raises(ValueError, match=r"must hold a folder per class.*own_images\.md"):
        own()
    with pytest.raises(FileNotFoundError, match=r"no-such not found.*own_images\.md"):
        own(FOLDER="no-such")
    with pytest.raises(ValueError, match=r"DATASET\.ROOT is empty"):
        build("imagefolder", root="")


# --- lists --------------------------------------------------------------------------------------


def write_listed_images(folder):
    for kind in ("cat", "dog"):
        for number in range(6):
            write_image(folder / "fotos é" / f"{kind}{number}.png")


ROWS = [(f"fotos é/{kind}{n}.png", kind, n) for kind in ("cat", "dog") for n in range(6)]
CSV = "path,label\n" + "".join(f"{path},{label}\n" for path, label, _ in ROWS)
PART = ["train"] * 3 + ["val"] + ["test"] * 2


@pytest.mark.parametrize("form", ["comma", "semicolon", "tab", "jsonl"])
def test_a_list_with_parts(own, tmp_path, form):
    write_listed_images(tmp_path)
    if form == "jsonl":
        lines = [
            json.dumps({"path": path, "label": label, "split": PART[n]}) for path, label, n in ROWS
        ]
        name, text = "own.jsonl", "\n".join(lines)
    else:
        mark = {"comma": ",", "semicolon": ";", "tab": "\t"}[form]
        lines = [["Split", "note", "path", "label"]]
        lines += [[PART[n], '"x, y"', path, label] for path, label, n in ROWS]
        name, text = "own.csv", "\ufeff" + "\r\n".join(mark.join(line) for line in lines)
    (tmp_path / name).write_text(text, encoding="utf-8")
    dataset = own(LIST=name)
    assert dataset.classnames == ["cat", "dog"]
    for part, items in zip(("train", "val", "test"), lists(dataset), strict=True):
        assert items == [
            (str(tmp_path / path), ["cat", "dog"].index(label), label)
            for path, label, n in ROWS
            if PART[n] == part
        ]


@pytest.mark.parametrize("place", ["beside the images", "in a folder", "elsewhere"])
def test_paths_start_at_the_list_or_at_the_images(own, tmp_path, place):
    folder = tmp_path / "data"
    write_listed_images(folder)
    where = {"beside the images": folder, "in a folder": folder / "lists"}.get(
        place, tmp_path / "other"
    )
    where.mkdir(exist_ok=True)
    lines = CSV.splitlines()
    random.Random(0).shuffle(rest := lines[1:])
    (where / "own.csv").write_text("\n".join([lines[0], *rest]), encoding="utf-8")
    dataset = own(FOLDER="data", LIST=str(where / "own.csv"))
    assert [len(items) for items in lists(dataset)] == [6, 2, 4]
    every = paths(dataset.train_x) | paths(dataset.val) | paths(dataset.test)
    assert every == {str(path) for path in folder.rglob("*.png")}
    # the split does not depend on the order of the rows
    (where / "own.csv").write_text(CSV, encoding="utf-8")
    assert lists(own(FOLDER="data", LIST=str(where / "own.csv"))) == lists(dataset)


@pytest.mark.parametrize("prefix", ["", ".\\"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_list_written_on_windows(own, tmp_path, form, prefix, capsys):
    write_listed_images(tmp_path)
    rows = [(prefix + path.replace("/", "\\"), label) for path, label, _ in ROWS]
    rows.append((ROWS[0][0], ROWS[0][1]))
    if form == "jsonl":
        text = "\n".join(json.dumps({"path": path, "label": label}) for path, label in rows)
    else:
        text = "path,label\r\n" + "".join(f"{path},{label}\r\n" for path, label in rows)
    (tmp_path / f"own.{form}").write_text(text, encoding="utf-8")
    dataset = own(LIST=f"own.{form}")
    assert "lists 1 image more than once" in capsys.readouterr().out
    (tmp_path / "own.csv").write_text(CSV, encoding="utf-8")
    assert lists(dataset) == lists(own(LIST="own.csv"))


def test_a_backslash_in_a_file_name_stays(own, tmp_path):
    for name in ("a\\0.png", "a\\1.png", "b\\0.png", "b\\1.png"):
        write_image(tmp_path / name)
    text = "path,label\n" + "".join(f"{c}\\{n}.png,{c}\n" for c in "ab" for n in range(2))
    (tmp_path / "own.csv").write_text(text)
    dataset = own(LIST="own.csv")
    assert paths(dataset.train_x) | paths(dataset.test) == set(map(str, tmp_path.glob("*.png")))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["own.csv is empty"]),
        ("\n", ["own.csv is empty"]),
        ("<!doctype html>\n<html></html>", ["own.csv is a web page"]),
        ("files\n", ["no column path and no column label"]),
        ("path,label\n", ["lists no image"]),
        ("file,label\na.png,cat\n", ["no column path", "'file,label'"]),
        (CSV + "fotos é/cat0.png,\n", ["line 14: label is empty"]),
        (CSV + ",cat\n", ["line 14: path is empty"]),
        (CSV + "fotos é/cat0.png\n", ["line 14: label is empty"]),
        (CSV + "./fotos é/cat0.png,dog\n", ["'cat' in line 2", "'dog' in line 14", "cat0.png"]),
        (CSV + "fotos é/cat9.png,cat\n", ["1 of its 13 images do not exist", "cat9.png"]),
        (CSV.replace("fotos", "bilder"), ["none of its images exists", "bilder é/cat0.png"]),
        ("path,label,split\nfotos é/cat0.png,cat,Train\nfotos é/cat0.png,cat,test\n",
         ["two values of split", "'train' in line 2", "'test' in line 3"]),
        ("path,label,split\nfotos é/cat0.png,cat,dev\n", ["line 2: split is 'dev'"]),
        ("path,label,split\nfotos é/cat0.png,cat,\n", ["line 2: split is ''"]),
        ("path,label,split\nfotos é/cat0.png,cat,val\n", ["neither train nor test images"]),
        ("path,label,split\nfotos é/cat0.png,cat,train\nfotos é/dog0.png,dog,test\n",
         ["'dog' has no training image"]),
        (CSV.replace("dog\n", "Cat\n"), ["'Cat' and 'cat'", "same name"]),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used(own, tmp_path, text, parts):
    write_listed_images(tmp_path)
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        own(LIST="own.csv")
    for part in [str(tmp_path / "own.csv"), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("x.jsonl", b'{"path": "a", "label": "b"}\n{"path"\n', ["line 2 is not JSON"]),
        ("x.jsonl", b'["a", "b"]\n', ["line 1 must be"]),
        ("x.jsonl", b'{"path": 3, "label": "b"}\n', ["line 1: path is 3"]),
        ("x.jsonl", b'{"path": "a"}\n', ["line 1: label is empty"]),
        ("x.csv", "path,label\ncafé.png,a\n".encode("latin-1"), ["save it as UTF-8"]),
        ("x.csv", "path,label\ncafé.png,a\n".encode("utf-16"), ["save it as UTF-8"]),
        ("x.jsonl", '{"path": "é", "label": "b"}\n'.encode("latin-1"), ["save it as UTF-8"]),
        ("x.xlsx", b"", ["ends in .csv, .tsv, .txt, .jsonl"]),
    ],
)
def test_list_files_that_cannot_be_parsed(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_image_list(str(tmp_path / name), [str(tmp_path)])
    for part in [name, *parts]:
        assert part in str(caught.value)


def test_repeated_rows_count_once(own, tmp_path, capsys):
    write_listed_images(tmp_path)
    (tmp_path / "own.csv").write_text(CSV + ROWS[0][0] + ",cat\n", encoding="utf-8")
    assert sum(map(len, lists(own(LIST="own.csv")))) == 12
    assert "lists 1 image more than once" in capsys.readouterr().out


def test_a_list_that_is_not_there(own, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"own\.csv not found"):
        own(LIST="own.csv")


# --- class names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "Hauskatze\nHund\n"),
        ("names.txt", "n2\tHund\n\nn1\tHauskatze\nn3\tWolf\n"),
        ("names.json", '{"n1": "Hauskatze", "n2": "Hund", "n3": "Wolf"}'),
        ("names.json", '["Hauskatze", "Hund"]'),
    ],
)
def test_names_from_a_file(own, tmp_path, name, text):
    for folder in ("n1", "n2"):
        fill(tmp_path / folder, 4)
    (tmp_path / name).write_text("\ufeff" + text if "txt" in name else text, encoding="utf-8")
    assert own(CLASSNAMES=name).classnames == ["Hauskatze", "Hund"]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("n.txt", "a\nb\nc\n", ["3 names for 2 classes (n1, n2)"]),
        ("n.txt", "n1\ta\nb\n", ["line 2", "class<TAB>name, but not 'b'"]),
        ("n.txt", "n1\ta\n\nn2\t_\n", ["line 3", "class name '_' is empty"]),
        ("n.txt", "a\n__\n", ["line 2", "class name '__' is empty"]),
        ("n.txt", "n1\ta\nn2\tb\nn1\tc\n", ["line 3", "'n1' a second name"]),
        ("n.txt", " \n", ["is empty"]),
        ("n.json", '{"n1": "a", "n2": "b", "n1": "c"}', ["'n1' twice"]),
        ("n.json", '{"n1": "a", "n2": "_"}', ["no name for the class 'n2'"]),
        ("n.txt", "n1\ta\nN2\tb\n", ["no name for the class 'n2'"]),
        ("n.txt", "n1\ta\nn02\tb\n", ["no name for the class 'n2'; it names 'n02'"]),
        ("n.json", '{"n1": "a", "n2": " "}', ["no name for the class 'n2'"]),
        ("n.json", '{"n1": "a", "n2": 2}', ["must map classes to names"]),
        ("n.json", '"a"', ["must map classes to names"]),
        ("n.json", "{", ["not valid JSON"]),
    ],
)
def test_name_files_that_cannot_be_used(tmp_path, name, text, parts):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        read_class_names(str(tmp_path / name), ["n1", "n2"])
    for part in [name, *parts]:
        assert part in str(caught.value)


def test_a_name_file_in_another_encoding(tmp_path):
    (tmp_path / "n.txt").write_text("Löwe\nBär\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"n\.txt is not UTF-8 text .*: save it as UTF-8"):
        read_class_names(str(tmp_path / "n.txt"), ["n1", "n2"])


def test_the_same_name_twice_names_both_classes(own, tmp_path):
    for folder in ("n1", "n2"):
        fill(tmp_path / folder, 4)
    (tmp_path / "names.txt").write_text("hot_dog\nHot dog\n")
    with pytest.raises(ValueError, match=r"names\.txt.*'n1' and 'n2' have the same name 'hot dog'"):
        own(CLASSNAMES="names.txt")


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Four classes of 10 images, names and folders outside ASCII, each class of one colour."""
    root = tmp_path_factory.mktemp("eigene Bilder äöü") / "Tiere"
    rng = np.random.default_rng(0)
    for label, name in enumerate(("Žirafa", "golden_retriever", "猫", "Käfer")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 60, (40, 36, 3)) + 50 * label
            file = root / name / f"Bild Nº {number}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


def test_a_run_without_a_test_predicts(animals, tmp_path, capsys):
    words = ["--root", str(animals), "--trainer", "MMLoP", "--seed", "1"]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/imagefolder.yaml")]
    words += ["--config-file", str(ROOT / "configs/trainers/MMLoP/tiny.yaml")]
    words += ["--output-dir", str(tmp_path / "run"), "USE_CUDA", "False", "OPTIM.MAX_EPOCH", "1"]
    words += ["DATASET.IMAGEFOLDER.VAL_FRACTION", "0", "DATASET.IMAGEFOLDER.TEST_FRACTION", "0"]
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    trainer = build_trainer(cfg)
    trainer.train()
    out = capsys.readouterr().out
    assert "train 40, no test (TEST_FRACTION 0)" in out
    assert "Not tested: no test images" in out and "accuracy" not in out
    (labels,) = Predictor.load(tmp_path / "run").predict([animals / "猫" / "Bild Nº 0.jpg"])
    assert {name for name, _ in labels} == set(trainer.dm.dataset.classnames)
    for wrong in (trainer.test, build_trainer(_zero_shot(cfg)).train):
        with pytest.raises(SettingError, match="ImageFolder has no test images to evaluate on"):
            wrong()


def _zero_shot(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.NAME = "ZeroshotCLIP"
    return cfg


def test_from_the_images_to_base_and_new_accuracy(animals, tmp_path):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHON": sys.executable,
        "DATA": str(animals),
        "OUTPUT": str(tmp_path / "out"),
        "CFG": "tiny",
        "SHOTS": "2",
        "TAG": "short",
    }

    def script(protocol, **more):
        path = ROOT / "scripts" / "mmlop" / f"{protocol}.sh"
        pairs = ["OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]
        return subprocess.run(
            ["bash", path, "imagefolder", "1", *pairs],
            env=env | more,
            capture_output=True,
            text=True,
            timeout=300,
        )

    # sorted: Käfer, golden_retriever, ... by code point; of 10 images 5 train, 2 val, 3 test
    order = sorted(("Žirafa", "golden_retriever", "猫", "Käfer"))
    for protocol, half in (("base2new_train", order[:2]), ("base2new_test", order[2:])):
        done = script(protocol)
        assert done.returncode == 0, done.stderr
        assert re.search(r"# classes +2\n", done.stdout)
        assert re.search(r"# train_x +4\n# val +4\n# test +6\n", done.stdout)
        assert re.search(r"\* total: 6\n", done.stdout)
        if protocol == "base2new_train":
            folder = tmp_path / "out/base2new/train_base/imagefolder/shots_2/MMLoP/tiny-short/seed1"
            import torch

            meta = torch.load(folder / "prompt_learner" / "model.pth.tar-1", weights_only=True)[
                "meta"
            ]
            assert meta["classnames"] == half
    assert script("base2new_train").stdout.startswith("finished already: ")

    # other images must not pass for these
    other = tmp_path / "other images"
    fill(other / "a", 4)
    for protocol in ("base2new_train", "base2new_test"):
        done = script(protocol, DATA=str(other))
        assert done.returncode == 2
        assert f"has results of {animals}, not of {other}" in done.stderr
        assert "configs/datasets/imagefolder.yaml" in done.stderr
