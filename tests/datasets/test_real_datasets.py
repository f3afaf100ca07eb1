"""Every real data set, read from a miniature tree in its own layout and file formats."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
import yaml
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from tests.datasets.miniatures import (
    BY_STEM,
    CONFIGS,
    REAL,
    VARIANTS,
    WNIDS,
    class_folders,
    write_image,
    write_lines,
)

ids = [miniature.stem for miniature in REAL]
with_split = [miniature for miniature in REAL if miniature.split_file]


def rows(items):
    return [(item.impath, item.label, item.classname) for item in items]


def lists(dataset):
    return [rows(items) for items in (dataset.train_x, dataset.val, dataset.test)]


@pytest.mark.parametrize("miniature", REAL + VARIANTS, ids=lambda m: m.stem)
def test_config_names_the_registered_class(miniature):
    config = yaml.safe_load((CONFIGS / f"{miniature.stem}.yaml").read_text())
    assert config == {"DATASET": {"NAME": miniature.name}}


@pytest.mark.parametrize("miniature", REAL, ids=ids)
def test_classes_and_sizes_from_the_raw_annotation(miniature, tree, build):
    folder = tree(miniature.stem)
    dataset = build(miniature.stem)
    assert tuple(dataset.classnames) == miniature.classnames
    assert dataset.num_classes == len(miniature.classnames)
    train, val, test = lists(dataset)
    assert (len(train), len(val), len(test)) == miniature.sizes
    for impath, label, classname in train + val + test:
        assert impath.startswith(str(folder) + os.sep)
        assert classname == miniature.classnames[label]
        with Image.open(impath) as image:
            assert image.size == (6, 6)
    if miniature.stem == "imagenet":
        assert val == test
    else:
        assert len({impath for impath, _, _ in train + val + test}) == sum(miniature.sizes)


@pytest.mark.parametrize("miniature", with_split, ids=lambda m: m.stem)
def test_generated_split_is_written_and_read_back(miniature, tree, build, tmp_path, capsys):
    folder = tree(miniature.stem)
    random.seed(123)
    expected = random.Random(123).random()
    generated = lists(build(miniature.stem))
    split_path = folder / miniature.split_file
    assert f"Saved split to {split_path}" in capsys.readouterr().out

    split = json.loads(split_path.read_text())
    assert list(split) == ["train", "val", "test"]
    assert tuple(len(split[part]) for part in split) == miniature.sizes
    for path, _, _ in split["train"] + split["val"] + split["test"]:
        assert (folder / miniature.image_dir / path).is_file()

    assert lists(build(miniature.stem)) == generated
    assert f"Reading split from {split_path}" in capsys.readouterr().out
    assert random.random() == expected

    # another machine, another run seed: the same split
    split_path.unlink()
    random.seed(7)
    build(miniature.stem, "SEED", 7)
    assert json.loads(split_path.read_text()) == split


@pytest.mark.parametrize("miniature", with_split, ids=lambda m: m.stem)
def test_published_split_is_all_that_is_needed(miniature, tree, build, tmp_path):
    """With the split file, neither lists nor .mat files are read, and its order is kept."""
    folder = tree(miniature.stem)
    build(miniature.stem)
    split_path = folder / miniature.split_file
    split = json.loads(split_path.read_text())
    for part in split.values():
        part.reverse()
    split["test"].pop()
    split_path.write_text(json.dumps(split))
    for path in [*folder.rglob("*.mat"), *folder.rglob("*.txt")]:
        path.unlink()
    for items, part in zip(lists(build(miniature.stem)), split.values(), strict=True):
        image_dir = os.path.normpath(folder / miniature.image_dir)
        assert items == [(os.path.join(image_dir, p), n, c) for p, n, c in part]


@pytest.mark.parametrize("miniature", REAL, ids=ids)
def test_base_and_new_classes(miniature, tree, build):
    tree(miniature.stem)
    middle = (len(miniature.classnames) + 1) // 2
    everything = build(miniature.stem)
    halves = {}
    for subsample, names in (
        ("base", miniature.classnames[:middle]),
        ("new", miniature.classnames[middle:]),
    ):
        half = build(miniature.stem, "DATASET.SUBSAMPLE_CLASSES", subsample)
        assert tuple(half.classnames) == names
        halves[subsample] = half
        for kept, full in zip(lists(half), lists(everything), strict=True):
            expected = [(path, names.index(c), c) for path, _, c in full if c in names]
            assert kept == expected
            assert {label for _, label, _ in kept} == set(range(len(names)))
    assert len(halves["base"].test) + len(halves["new"].test) == len(everything.test)


@pytest.mark.parametrize("miniature", VARIANTS, ids=lambda m: m.stem)
def test_imagenet_variants(miniature, tree, build):
    folder = tree(miniature.stem)
    dataset = build(miniature.stem, "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 1)
    assert tuple(dataset.classnames) == miniature.classnames
    assert len(dataset.test) == miniature.sizes[2]
    assert rows(dataset.train_x) == rows(dataset.test)
    assert not dataset.val
    assert all(os.path.isfile(item.impath) for item in dataset.test)
    assert not (folder / "split_fewshot").exists()


def test_imagenetv2_folders_are_numbers(tree, build):
    tree("imagenetv2")
    for item in build("imagenetv2").test:
        assert os.path.basename(os.path.dirname(item.impath)) == str(item.label)


@pytest.mark.parametrize("miniature", REAL + VARIANTS, ids=lambda m: m.stem)
def test_missing_data_set_is_named(miniature, build, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        build(miniature.stem)
    message = str(caught.value)
    assert str(tmp_path / miniature.folder) in message
    assert "docs/datasets.md" in message and "DATASET.ROOT" in message


@pytest.mark.parametrize(
    ("stem", "annotation"),
    [
        ("oxford_pets", "annotations/trainval.txt"),
        ("stanford_cars", "devkit/cars_train_annos.mat"),
        ("oxford_flowers", "cat_to_name.json"),
        ("fgvc_aircraft", "variants.txt"),
        ("sun397", "ClassName.txt"),
        ("ucf101", "ucfTrainTestlist/classInd.txt"),
        ("imagenet", "classnames.txt"),
        ("imagenet_r", "classnames.txt"),
    ],
)
def test_missing_annotation_is_named(stem, annotation, tree, build):
    folder = tree(stem)
    (folder / annotation).unlink()
    with pytest.raises(FileNotFoundError, match=str(folder / annotation)):
        build(stem)


@pytest.mark.parametrize(
    ("stem", "annotation", "image"),
    [
        ("oxford_pets", "annotations/test.txt", "images/Abyssinian_11.jpg"),
        ("stanford_cars", "cars_test_annos_withlabels.mat", "cars_test/00003.jpg"),
        ("oxford_flowers", "imagelabels.mat", "jpg/image_00004.jpg"),
        ("fgvc_aircraft", "images_variant_val.txt", "images/0000103.jpg"),
        ("sun397", "Training_01.txt", "SUN397/a/abbey/sun_000003.jpg"),
        (
            "ucf101",
            "ucfTrainTestlist/trainlist01.txt",
            "UCF-101-midframes/Yo_Yo/v_YoYo_g09_c01.jpg",
        ),
    ],
)
def test_annotation_that_names_an_absent_image(stem, annotation, image, tree, build):
    folder = tree(stem)
    (folder / image).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        build(stem)
    assert str(folder / annotation) in str(caught.value)
    assert str(folder / image) in str(caught.value)


@pytest.mark.parametrize(
    ("stem", "annotation", "line"),
    [
        ("fgvc_aircraft", "images_variant_val.txt", "0000103 Concorde"),
        ("sun397", "Training_01.txt", "/c/castle/sun_000003.jpg"),
        ("ucf101", "trainlist01.txt", "Juggling/v_Juggling_g09_c01.avi 9"),
    ],
)
def test_annotation_of_an_unknown_class(stem, annotation, line, tree, build):
    folder = tree(stem)
    path = next(folder.rglob(annotation))
    write_lines(path, [*path.read_text().splitlines(), line])
    with pytest.raises(ValueError, match="not in the class list") as caught:
        build(stem)
    assert str(path) in str(caught.value)


def test_split_of_another_data_set(tree, build):
    tree("dtd")
    build("dtd")
    folder = tree("food101")
    split_path = folder / BY_STEM["food101"].split_file
    shutil.copy(folder.parent / "dtd" / BY_STEM["dtd"].split_file, split_path)
    with pytest.raises(FileNotFoundError, match="none of its images exists") as caught:
        build("food101")
    assert str(split_path) in str(caught.value)


def test_split_that_names_one_absent_image(tree, build):
    folder = tree("dtd")
    build("dtd")
    (folder / "images" / "banded" / "banded_0002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of its 40 images do not exist") as caught:
        build("dtd")
    assert "banded_0002.jpg" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"train": [], "val": []}', '{"train": [[1]]}'])
def test_broken_split_file(text, tree, build):
    folder = tree("dtd")
    split_path = folder / BY_STEM["dtd"].split_file
    split_path.write_text(text)
    with pytest.raises(ValueError, match="not a split file") as caught:
        build("dtd")
    assert str(split_path) in str(caught.value)


def test_split_without_training_images(tree, build):
    folder = tree("dtd")
    (folder / BY_STEM["dtd"].split_file).write_text('{"train": [], "val": [], "test": []}')
    with pytest.raises(ValueError, match="the training list is empty"):
        build("dtd")


def test_class_without_training_images(tree, build):
    folder = tree("dtd")
    build("dtd")
    split_path = folder / BY_STEM["dtd"].split_file
    split = json.loads(split_path.read_text())
    split["train"] = [row for row in split["train"] if row[1] != 2]
    split_path.write_text(json.dumps(split))
    with pytest.raises(ValueError, match=r"no training image for 1 of 4 classes .*label: 2"):
        build("dtd")


@pytest.mark.parametrize(
    ("label", "message"),
    [(-1, "label -1 in .*dtd is below 0"), (10**12, r"no training image for .*first label: 4\)")],
)
def test_split_with_impossible_labels(tree, build, label, message):
    folder = tree("dtd")
    build("dtd")
    split_path = folder / BY_STEM["dtd"].split_file
    split = json.loads(split_path.read_text())
    split["train"][0][1] = label
    split_path.write_text(json.dumps(split))
    with pytest.raises(ValueError, match=message):
        build("dtd")


def test_no_class_folder(tree, build, tmp_path):
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="No class folder"):
        build("dtd")


def test_class_too_small_to_split(tree, build):
    folder = tree("dtd")
    write_image(folder / "images" / "woven" / "woven_0001.jpg")
    with pytest.raises(ValueError, match="'woven' has 1 image,"):
        build("dtd")


def test_dataset_file_written_for_upstream_can_use_the_helpers(tree, tmp_path):
    """Data set files of other projects call these on OxfordPets and DescribableTextures."""
    from datasets.dtd import DescribableTextures
    from datasets.oxford_pets import OxfordPets

    image_dir = str(tree("food101") / "images")
    split = DescribableTextures.read_and_split_data(
        image_dir, ignored=["waffles"], new_cnames={"apple_pie": "apple pie"}
    )
    assert [len(items) for items in split] == [10, 4, 6]
    path = str(tmp_path / "split.json")
    OxfordPets.save_split(*split, path, image_dir)
    again = OxfordPets.read_split(path, image_dir)
    assert [rows(items) for items in again] == [rows(items) for items in split]
    train, test = OxfordPets.subsample_classes(again[0], again[2], subsample="new")
    assert {item.classname for item in train + test} == {"beef_tartare"}


# --- ImageNet's list of all images ------------------------------------------------------------


def test_imagenet_lists_are_kept_with_relative_paths(tree, build, tmp_path):
    folder = tree("imagenet")
    first = lists(build("imagenet"))
    assert str(tmp_path) not in (folder / "preprocessed.json").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(folder, moved / "imagenet")
    second = lists(build("imagenet", root=moved))
    assert [
        [(p.replace(str(moved), str(tmp_path)), n, c) for p, n, c in x] for x in second
    ] == first


def test_imagenet_lists_follow_changed_classes(tree, build, capsys):
    folder = tree("imagenet")
    build("imagenet")
    write_lines(folder / "classnames.txt", [f"{w} {n.upper()}" for w, n in WNIDS.items()])
    capsys.readouterr()
    assert build("imagenet").classnames[0] == "TENCH"
    assert "class folders or names have changed" in capsys.readouterr().out
    for part in ("train", "val"):
        shutil.rmtree(folder / "images" / part / "n01440764")
    assert build("imagenet").classnames == [name.upper() for name in WNIDS.values()][1:]


def test_imagenet_validation_folder_of_an_unknown_class(tree, build):
    folder = tree("imagenet")
    shutil.rmtree(folder / "images" / "train" / "n01440764")
    with pytest.raises(ValueError, match="n01440764"):
        build("imagenet")


def test_imagenet_folder_without_class_name(tree, build):
    folder = tree("imagenet")
    write_lines(folder / "classnames.txt", [f"{w} {n}" for w, n in list(WNIDS.items())[1:]])
    with pytest.raises(ValueError, match="n01440764"):
        build("imagenet")


def test_imagenet_draws_no_validation_shots(tree, build):
    tree("imagenet")
    dataset = build("imagenet", "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base")
    assert len(dataset.train_x) == 2 * 3
    assert len(dataset.test) == 3 * 3
    assert rows(dataset.val) == rows(dataset.test)


# --- docs/datasets.md -------------------------------------------------------------------------

GUIDE = (CONFIGS.parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("miniature", REAL + VARIANTS, ids=lambda m: m.stem)
def test_guide_names_folder_and_split(miniature):
    start = f"| `{miniature.stem}` | `{miniature.name}` | `{miniature.folder}` |"
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(start)]
    last = row.split("|")[-2].strip(" `")
    if miniature in VARIANTS:
        assert last == "test only"
    else:
        assert last == (miniature.split_file or "official lists")


def test_guide_s_new_data_set(tmp_path, dataset_cfg, monkeypatch):
    """The example's own code, as a file of the package."""
    code = GUIDE.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY._obj_map))
    scope = {"__name__": "datasets.birds", "__package__": "datasets"}
    exec(compile(code, "birds.py", "exec"), scope)
    class_folders(tmp_path / "birds" / "images", ["robin", "wren"], 10)
    dataset = build_dataset(dataset_cfg("dtd", "DATASET.NAME", "Birds"))
    assert dataset.classnames == ["robin", "wren"]
    assert (tmp_path / "birds" / "split_birds.json").is_file()
