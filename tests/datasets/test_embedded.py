"""The data sets that come with the repository, and the shipped CLIP on them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dassl.engine import build_trainer
from datasets.rendering import HELD_OUT
from datasets.shapes import render
from protocols import VARIANTS_OF

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Data root that both data sets are written to once."""
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture()
def load(dataset_cfg, root):
    from dassl.data.datasets import build_dataset

    return lambda stem, *opts: build_dataset(dataset_cfg(stem, *opts, root=root))


@pytest.mark.parametrize(
    ("stem", "classes", "train", "test"),
    [
        ("digits", 10, 300, 1397),
        ("shapes", 36, 720, 1440),
        ("letters", 26, 624, 1300),
        ("symbols", 80, 1600, 2000),
    ],
)
def test_sizes(load, stem, classes, train, test):
    data = load(stem)
    assert data.num_classes == classes
    assert len(data.train_x) == train
    assert len(data.test) == test
    with Image.open(data.test[0].impath) as image:
        assert image.size == (32, 32)
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("stem", "half"), [("digits", 5), ("shapes", 18), ("letters", 13), ("symbols", 40)]
)
def test_base_and_new(load, stem, half):
    names = load(stem).classnames
    base = load(stem, "DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 16)
    new = load(stem, "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 16)
    assert base.classnames == names[:half]
    assert new.classnames == names[half:]
    assert len(base.train_x) == len(new.train_x) == 16 * half


def test_digits_are_the_real_ones(load):
    data = load("digits")
    assert data.classnames[7] == "digit seven"
    source = load_digits()
    first_three = source.images[source.target == 3][0]
    item = next(item for item in data.train_x if item.label == 3)
    with Image.open(item.impath) as image:
        small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    difference = np.abs(np.asarray(small) / 255 * 16 - first_three)
    assert difference.mean() < 1.0


def test_shapes_are_the_same_every_time(load):
    data = load("shapes")
    assert data.classnames == [f"{colour} {shape}" for colour, shape in HELD_OUT]
    with Image.open(data.test[-1].impath) as image:
        assert np.array_equal(np.asarray(image), np.asarray(render(35, "test", 39)))


def test_two_first_uses_at_once(tmp_path):
    code = (
        "import sys, datasets\n"
        "from dassl.config import get_cfg_default\n"
        "from dassl.data.datasets import build_dataset\n"
        "cfg = get_cfg_default(); datasets.extend_cfg(cfg)\n"
        "cfg.merge_from_list(['DATASET.NAME', 'Digits', 'DATASET.ROOT', sys.argv[1]])\n"
        "print(len(build_dataset(cfg).test))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.splitlines()[-1] == "1397"
    assert os.listdir(tmp_path / "data") == ["digits"]


def test_interrupted_first_use_leaves_nothing_behind(load, tmp_path, dataset_cfg, monkeypatch):
    from dassl.data.datasets import build_dataset
    from datasets.digits import Digits

    whole = Digits.images

    def broken(self):
        for n, item in enumerate(whole(self)):
            if n == 50:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Digits, "images", broken)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(dataset_cfg("digits"))
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(Digits, "images", whole)
    assert len(build_dataset(dataset_cfg("digits")).test) == 1397


def interrupted(folder: Path, age: float, *files: str) -> Path:
    """What a process that was killed some seconds ago leaves of a data set."""
    folder.mkdir()
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    then = time.time() - age
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))
    return folder


@pytest.mark.parametrize("there", [False, True], ids=["first use", "later use"])
def test_a_killed_first_use_is_cleared_away(tmp_path, dataset_cfg, there):
    from dassl.data.datasets import build_dataset

    if there:
        build_dataset(dataset_cfg("digits"))
    image = "images/train/00/00000.png"
    kept = [
        interrupted(tmp_path / ".digits-justnow0", 60, image),
        interrupted(tmp_path / ".digits-complete", 9000, image, "split.json"),
        interrupted(tmp_path / ".digits-original", 9000, "notes.txt"),
        interrupted(tmp_path / ".shapes-abcd_123", 9000, image),
        interrupted(tmp_path / "digits-abcd_1234", 9000, image),
    ]
    # still growing: only the folder of the present class is newer
    kept.append(interrupted(tmp_path / ".digits-growing0", 9000, image))
    os.utime((kept[-1] / image).parent)
    interrupted(tmp_path / ".digits-abcd_123", 9000, image)
    interrupted(tmp_path / ".digits-0empty_0", 9000)
    assert len(build_dataset(dataset_cfg("digits")).test) == 1397
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "digits"}


def test_no_root(dataset_cfg):
    from dassl.data.datasets import build_dataset

    with pytest.raises(ValueError, match="--root data"):
        build_dataset(dataset_cfg("digits", root=""))


@pytest.mark.parametrize(("stem", "part"), [("letters", "train"), ("symbols", 0)])
def test_letters_and_symbols_are_the_same_every_time(load, stem, part):
    data, module = load(stem), importlib.import_module(f"datasets.{stem}")
    first = [item for item in data.train_x if item.label == 7]
    for index, item in enumerate(first[:3]):
        with Image.open(item.impath) as image:
            assert np.array_equal(np.asarray(image), np.asarray(module.render(7, part, index)))
    assert data.classnames == sorted(data.classnames)


@pytest.mark.parametrize("variant", VARIANTS_OF["symbols"])
def test_variants_of_symbols(load, variant):
    data, symbols = load(variant), load("symbols")
    assert set(data.classnames) <= set(symbols.classnames)
    assert data.num_classes in (40, 80)
    assert {item.label for item in data.test} == set(range(data.num_classes))
    seen = {hash(Path(item.impath).read_bytes()) for item in (*symbols.train_x, *symbols.test)}
    assert seen.isdisjoint(hash(Path(item.impath).read_bytes()) for item in data.test)


SHIPPED = [("tiny", "Digits"), ("tiny", "Shapes")]
SHIPPED += [("tiny-2", data) for data in ("Digits", "Shapes", "Letters", "Symbols")]


@pytest.mark.parametrize(("backbone", "data"), SHIPPED)
@pytest.mark.parametrize("classes", ["base", "new"])
def test_shipped_clip_is_above_chance_and_below_ceiling(make_cfg, root, backbone, data, classes):
    """The bands are wide: they say that the shipped file works, not how well."""
    trainer = build_trainer(
        make_cfg(
            "ZeroshotCLIP",
            *("DATASET.NAME", data, "DATASET.ROOT", str(root)),
            *("MODEL.BACKBONE.NAME", backbone, "DATASET.SUBSAMPLE_CLASSES", classes),
        )
    )
    accuracy, chance = trainer.test(), 100 / len(trainer.dm.dataset.classnames)
    assert 2 * chance < accuracy < 90


def test_split_file_is_portable(load, root):
    load("digits")
    split = json.loads((root / "digits" / "split.json").read_text())
    assert set(split) == {"train", "val", "test"}
    assert all(not os.path.isabs(path) for path, _, _ in split["test"])
