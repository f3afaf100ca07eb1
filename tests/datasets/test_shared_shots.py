"""Few-shot images of published lists."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import set_random_seed

SHARED = ("DATASET.SHARED_SHOTS", True)


@pytest.fixture
def build(make_cfg, data_root, tmp_path):
    """Function that builds the images of a run; the data set has a folder of its own."""
    (tmp_path / "root").mkdir()
    root = tmp_path / "root"
    shutil.copytree(data_root / "test-images", root / "test-images", dirs_exist_ok=True)
    shutil.rmtree(root / "test-images" / "split_fewshot", ignore_errors=True)

    def build(*pairs):
        cfg = make_cfg("CoOp", "DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", 2, *pairs)
        set_random_seed(cfg.SEED)
        return build_dataset(cfg)

    build.folder = root / "test-images"
    return build


def row(item, root: Path) -> dict:
    path = Path(item.impath).relative_to(root).as_posix()
    return {"_impath": path, "_label": item.label, "_domain": 0, "_classname": item.classname}


def write(folder: Path, train: list, val: list, shots: int = 2, seed: int = 1) -> Path:
    """Write lists of rows or of lines, and return the file of training images."""
    (folder / "split_fewshot").mkdir(exist_ok=True)
    for part, rows in (("train", train), ("val", val)):
        lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
        path = folder / "split_fewshot" / f"shot_{shots}-seed_{seed}_{part}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.with_name(f"shot_{shots}-seed_{seed}_train.jsonl")


@pytest.fixture
def lists(build):
    """Rows of the last two images of each class, for training and validation."""
    whole = build("DATASET.NUM_SHOTS", -1)
    found = []
    for items in (whole.train_x, whole.val):
        by_class = {label: [i for i in items if i.label == label] for label in range(5)}
        last = [item for each in by_class.values() for item in reversed(each[-2:])]
        found.append([row(item, build.folder.parent) for item in last])
    return found


def test_images_are_those_of_the_lists_in_their_order(build, lists):
    drawn = build()
    after_a_draw = random.random()
    write(build.folder, *lists)
    shared = build(*SHARED)
    assert random.random() == after_a_draw
    root = build.folder.parent
    assert [row(item, root) for item in shared.train_x] == lists[0]
    assert [row(item, root) for item in shared.val] == lists[1]
    assert lists[0] != [row(item, root) for item in drawn.train_x]
    assert [row(i, root) for i in shared.test] == [row(i, root) for i in drawn.test]


def test_base_and_new_classes_are_cut_afterwards(build, lists):
    write(build.folder, *lists)
    base, new = (build(*SHARED, "DATASET.SUBSAMPLE_CLASSES", part) for part in ("base", "new"))
    paths = [Path(item.impath).name for item in (*base.train_x, *new.train_x)]
    assert paths == [Path(one["_impath"]).name for one in lists[0]]
    assert {item.label for item in new.train_x} == {0, 1}


WRONG = {
    "label": (lambda r: [{**r[0], "_label": 3}, *r[1:]], "line 1 has label 3 and class"),
    "name": (lambda r: [{**r[0], "_classname": "x"}, *r[1:]], "class 'x' for .*the data set has 0"),
    "twice": (lambda r: [r[0], r[0], *r[2:]], "line 2 names .* again, after .*line 1"),
    "fewer": (lambda r: r[:-1], "has 1 images of class .* and not 2"),
    "other folder": (
        lambda r: [{**r[0], "_impath": r[0]["_impath"].replace("test-images/", "other/")}, *r[1:]],
        r"line 1 names other/.*its paths begin with test-images/",
    ),
    "a test image": (
        lambda r: [{**r[0], "_impath": r[0]["_impath"].replace("/train/", "/test/")}, *r[1:]],
        "line 1 names .*not in the present list",
    ),
    "key": (lambda r: [{**r[0], "more": 1}, *r[1:]], "line 1 is no object with the keys _impath"),
    "kind": (lambda r: [r[0], {**r[1], "_label": "0"}, *r[2:]], "line 2 has '0' as _label"),
    "no JSON": (lambda r: [*r[:3], "{oops", *r[4:]], "line 4 is not valid JSON"),
    "no object": (lambda r: [*r[:3], "[1]", *r[4:]], "line 4 is no object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_by_its_line(build, lists, what):
    change, message = WRONG[what]
    write(build.folder, change(lists[0]), lists[1])
    with pytest.raises(ValueError, match=message) as error:
        build(*SHARED)
    assert "\n" not in str(error.value) and "_train.jsonl" in str(error.value)


def test_files_that_are_missing_and_shots_that_are_none(build, lists):
    path = write(build.folder, *lists)
    with pytest.raises(FileNotFoundError, match=r"shot_2-seed_5_train\.jsonl.*SHARED_SHOTS False"):
        build(*SHARED, "SEED", 5)
    path.with_name("shot_2-seed_1_val.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"_val\.jsonl"):
        build(*SHARED)
    with pytest.raises(ValueError, match=r"SHARED_SHOTS True .*set DATASET\.NUM_SHOTS"):
        build(*SHARED, "DATASET.NUM_SHOTS", -1)
