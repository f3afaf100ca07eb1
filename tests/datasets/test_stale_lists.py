"""Lists that are kept on disk: nothing is kept before it was checked, and none outlives its images.

The accident that users report most: the first run comes while images are still being unpacked.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from datasets.oxford_pets import OxfordPets
from tests.datasets.miniatures import BY_STEM, WNIDS, class_folders, write_image, write_lines
from tests.datasets.test_fewshot import elsewhere, lists, rows, shots, write_upstream_pickle


def age(folder):
    """Let the class folders of an ImageNet have changed an hour ago, as after a while they have."""
    for path in (folder / "images").glob("*/*"):
        os.utime(path, (os.stat(path).st_mtime - 3600,) * 2)


def sizes(dataset):
    return [len(part) for part in lists(dataset)]


# --- ImageNet -----------------------------------------------------------------------------------


@pytest.fixture
def imagenet(tree):
    folder = tree("imagenet")
    age(folder)
    return folder


@pytest.mark.parametrize("part", ["train", "val"])
def test_flat_images_are_sorted_later(part, imagenet, build):
    images = imagenet / "images" / part
    sorted_, flat = {}, []
    for path in list(images.glob("*/*")):
        sorted_[path.name] = path
        flat.append(path.rename(images / path.name))
    for folder in images.iterdir():
        if folder.is_dir():
            folder.rmdir()
    says = f"{images}, which holds {len(flat)} images: sort the images into <wnid>/"
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            build("imagenet")
        assert says in str(caught.value)
    assert not (imagenet / "preprocessed.json").exists()
    for path in flat:
        sorted_[path.name].parent.mkdir(exist_ok=True)
        path.rename(sorted_[path.name])
    assert sizes(build("imagenet")) == [30, 15, 15]


def test_archives_that_are_not_unpacked(imagenet, build):
    train = imagenet / "images" / "train"
    shutil.rmtree(train)
    train.mkdir()
    (train / "n01440764.tar").touch()
    with pytest.raises(ValueError, match=r"holds n01440764\.tar: sort the images"):
        build("imagenet")


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("what", ["folders", "images"])
def test_half_unpacked_images(part, what, imagenet, build, tmp_path, capsys):
    whole = shutil.copytree(imagenet, tmp_path / "whole")
    folders = sorted((imagenet / "images" / part).iterdir())
    for folder in folders[2:] if what == "folders" else []:
        shutil.rmtree(folder)
    for folder in folders if what == "images" else []:
        for image in sorted(folder.iterdir())[:1]:
            image.unlink()
    age(imagenet)
    if what == "folders":
        with pytest.raises(ValueError, match=rf"images/{part} lacks 3 of 5 class folders"):
            build("imagenet")
        assert not (imagenet / "preprocessed.json").exists()
    else:
        assert sizes(build("imagenet")) == ([25, 15, 15] if part == "train" else [30, 10, 10])
    shutil.copytree(whole, imagenet, dirs_exist_ok=True)
    capsys.readouterr()
    assert sizes(build("imagenet")) == [30, 15, 15]
    out = capsys.readouterr().out
    if what == "images":
        assert f"{imagenet / 'preprocessed.json'} not used, folders are listed again" in out
        assert str(imagenet / "images" / part / "n01440764") in out


def test_a_class_folder_without_images_is_not_kept(imagenet, build):
    folder = imagenet / "images" / "val" / "n01443537"
    for image in folder.iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=f"class folder {folder} has no image"):
        build("imagenet")
    assert not (imagenet / "preprocessed.json").exists()


def test_an_image_that_came_within_the_resolution_of_the_clock(tree, build):
    """As on drives whose times have two seconds: the folder's time is the same before and after."""
    folder = tree("imagenet")
    build("imagenet")
    path = folder / "images" / "train" / "n01440764"
    before = os.stat(path)
    write_image(path / "late.JPEG")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sizes(build("imagenet")) == [31, 15, 15]


def test_folders_that_have_not_changed_are_not_listed(imagenet, build, capsys):
    """A million files take minutes on a network drive."""
    first = lists(build("imagenet"))
    path = imagenet / "images" / "train" / "n01440764"
    before = os.stat(path)
    (path / "n01440764_0.JPEG").rename(path / "other.JPEG")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    assert lists(build("imagenet")) == first
    out = capsys.readouterr().out
    assert f"30 training and 15 test images from {imagenet / 'preprocessed.json'}" in out


def test_the_order_of_an_upstream_list_survives_a_copy(imagenet, build, tmp_path):
    """It decides what a seed draws; copied folders have other times, and the same images."""
    train, _, test = lists(build("imagenet"))
    (imagenet / "preprocessed.json").unlink()
    content = {"train": elsewhere(train[::-1], imagenet), "test": elsewhere(test, imagenet)}
    write_upstream_pickle(imagenet / "preprocessed.pkl", content)
    assert lists(build("imagenet"))[0] == train[::-1]
    (imagenet / "preprocessed.pkl").unlink()
    for path in (imagenet / "images").glob("*/*"):
        os.utime(path)
    assert lists(build("imagenet"))[0] == train[::-1]
    age(imagenet)
    assert lists(build("imagenet"))[0] == train[::-1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: {**c, "test": []},
        lambda c: {**c, "train": []},
        lambda c: {"train": c["train"]},
        lambda c: {**c, "test": c["test"][:-1]},
        lambda c: {**c, "train": c["train"][: len(c["train"]) // 2]},
        lambda c: {**c, "train": c["train"] * 2},
        lambda c: {**c, "test": [("lost.JPEG", 0, "tench")]},
    ],
)
def test_a_poisoned_upstream_list(spoil, imagenet, build, capsys):
    expected = lists(build("imagenet"))
    (imagenet / "preprocessed.json").unlink()
    content = {part: elsewhere(expected[n], imagenet) for part, n in (("train", 0), ("test", 2))}
    pickled = imagenet / "preprocessed.pkl"
    write_upstream_pickle(pickled, spoil(content))
    capsys.readouterr()
    assert lists(build("imagenet")) == expected
    assert f"{pickled} not used, folders are listed again" in capsys.readouterr().out
    pickled.unlink()
    assert lists(build("imagenet")) == expected


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: (
            {name: c[name] for name in ("classes_sha256", "train", "test")} | {"test": []}
        ),  # as earlier versions took it over
        lambda c: {**c, "test": [], "folder_times": {}},
        lambda c: {name: c[name] for name in ("classes_sha256", "train", "folder_times")},
        lambda c: {**c, "test": [["val/n01440764", 0, "tench"]]},
        lambda c: {**c, "folder_times": []},
        lambda c: [],
        lambda c: "<html>",
    ],
)
def test_a_poisoned_list(spoil, imagenet, build, capsys):
    expected = lists(build("imagenet"))
    path = imagenet / "preprocessed.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    capsys.readouterr()
    assert lists(build("imagenet")) == expected
    assert f"{path} not used, folders are listed again" in capsys.readouterr().out
    assert lists(build("imagenet")) == expected


def test_a_list_of_an_earlier_version_is_taken_over(imagenet, build):
    expected = lists(build("imagenet"))
    path = imagenet / "preprocessed.json"
    content = json.loads(path.read_text())
    del content["folder_times"]
    content["train"] = content["train"][::-1]
    path.write_text(json.dumps(content))
    assert lists(build("imagenet"))[0] != expected[0]
    assert sizes(build("imagenet")) == [30, 15, 15]
    assert "folder_times" in json.loads(path.read_text())


def test_other_names_of_classes(imagenet, build):
    build("imagenet")
    write_lines(imagenet / "classnames.txt", [f"{w} {n}!" for w, n in WNIDS.items()])
    assert build("imagenet").classnames[1] == "goldfish!"


# --- split files that are generated -------------------------------------------------------------


def test_split_of_half_unpacked_folders(tree, build, command, tmp_path, capsys):
    folder = tree("dtd")
    for name in ("banded", "zigzagged"):
        shutil.move(folder / "images" / name, tmp_path / name)
    assert len(shots(build).classnames) == 2
    split = folder / BY_STEM["dtd"].split_file
    first = split.read_text()
    for name in ("banded", "zigzagged"):
        shutil.move(tmp_path / name, folder / "images" / name)
    expected = sum(BY_STEM["dtd"].sizes)
    out = command("dtd", "--check", "--root", str(tmp_path))[1]
    assert "4 classes instead of 47" in " ".join(out.split())
    assert split.read_text() == first  # --check writes nothing
    dataset = shots(build)
    out = capsys.readouterr().out
    assert len(dataset.classnames) == 4 and len(dataset.train_x) == 8
    assert "have changed, so it is generated anew" in out and str(split) in out
    assert "drawn from another split" in out
    assert split.with_name("split_zhou_DescribableTextures.earlier.json").read_text() == first
    assert sum(sizes(build("dtd"))) == expected
    assert "generated anew" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stem", "file", "line", "image"),
    [
        ("ucf101", "ucfTrainTestlist/testlist01.txt", "YoYo/v_YoYo_g05_c01.avi", "v_YoYo_g05"),
        ("oxford_pets", "annotations/trainval.txt", "Abyssinian_20 1 1 1", "Abyssinian_20"),
    ],
)
def test_split_of_an_annotation_that_has_grown(stem, file, line, image, tree, build):
    folder = tree(stem)
    before = sum(sizes(build(stem)))
    images = folder / BY_STEM[stem].image_dir / ("Yo_Yo" if stem == "ucf101" else "")
    write_image(images / (line.split()[0].split("/")[-1].replace(".avi", "") + ".jpg"))
    write_lines(folder / file, [*(folder / file).read_text().splitlines(), line])
    after = lists(build(stem))
    assert sum(map(len, after)) == before + 1
    assert any(image in path for part in after for path, _, _ in part)


def test_split_whose_annotation_was_removed(tree, build):
    folder = tree("oxford_pets")
    expected = lists(build("oxford_pets"))
    shutil.rmtree(folder / "annotations")
    assert lists(build("oxford_pets")) == expected


def test_annotations_without_validation_images(tree, build, monkeypatch):
    tree("oxford_pets")
    read = OxfordPets.read_annotations
    monkeypatch.setattr(
        OxfordPets, "read_annotations", lambda self: (read(self)[0], None, read(self)[2])
    )
    for _ in range(2):  # there is no split file to read the second time
        dataset = build("oxford_pets")
        assert dataset.test and rows(dataset.val) == rows(dataset.test)


@pytest.mark.parametrize("how", ["edited", "published"])
def test_split_that_is_no_longer_the_generated_one(how, tree, build, capsys):
    folder = tree("dtd")
    build("dtd")
    path = folder / BY_STEM["dtd"].split_file
    split = json.loads(path.read_text())
    if how == "edited":
        split["test"].pop()
    else:
        split = {part: items[::-1] for part, items in split.items()}
    path.write_text(json.dumps(split))
    class_folders(folder / "images", ["woven"], 10)
    capsys.readouterr()
    assert sizes(build("dtd")) == [len(items) for items in split.values()]
    assert "generated anew" not in capsys.readouterr().out
    assert json.loads(path.read_text()) == split


def test_no_split_is_kept_that_cannot_be_used(tree, build):
    folder = tree("ucf101")
    lines = (folder / "ucfTrainTestlist" / "trainlist01.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("YoYo")]
    write_lines(folder / "ucfTrainTestlist" / "trainlist01.txt", kept)
    with pytest.raises(ValueError, match=r"no training image for 1 of 3 .*label: 1 'Yo_Yo'"):
        build("ucf101")
    assert not (folder / BY_STEM["ucf101"].split_file).exists()
    write_lines(folder / "ucfTrainTestlist" / "trainlist01.txt", lines)
    assert tuple(sizes(build("ucf101"))) == BY_STEM["ucf101"].sizes


# --- shots --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: {**c, "train": []},
        lambda c: {**c, "val": []},
        lambda c: {**c, "val": None},
        lambda c: {**c, "train": c["train"][:2]},
        lambda c: {**c, "train": [["images/banded/lost.jpg", 0, "banded"], *c["train"]]},
        lambda c: {**c, "train": [[p, n + 1, name] for p, n, name in c["train"]]},
        lambda c: {**c, "train": [[p] for p, _, _ in c["train"]]},
    ],
)
def test_shots_that_are_not_of_the_present_lists(spoil, tree, build, capsys):
    folder = tree("dtd")
    expected = lists(shots(build))
    path = folder / "split_fewshot" / "shot_2-seed_1.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    capsys.readouterr()
    assert lists(shots(build)) == expected
    out = capsys.readouterr().out
    assert "cache not used, samples are drawn again" in out and str(path) in out


def test_other_class_names_in_the_split_reach_the_shots(tree, build):
    folder = tree("dtd")
    shots(build)
    path = folder / BY_STEM["dtd"].split_file
    split = json.loads(path.read_text())
    renamed = {part: [[p, n, c.upper()] for p, n, c in rs] for part, rs in split.items()}
    path.write_text(json.dumps(renamed))
    assert {name for _, _, name in rows(shots(build).train_x)} == {
        name.upper() for name in BY_STEM["dtd"].classnames
    }
