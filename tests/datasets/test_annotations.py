"""Annotation files that are not what they should be, and class names that are empty or ambiguous.

Each is one error that names the file, what is wrong, and where; `--check` says the same.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import savemat

from tests.datasets.miniatures import BY_STEM, WNIDS, class_folders, write_lines

ANNOTATIONS = [
    ("oxford_pets", "annotations/trainval.txt"),
    ("oxford_pets", "annotations/test.txt"),
    ("stanford_cars", "devkit/cars_train_annos.mat"),
    ("stanford_cars", "devkit/cars_meta.mat"),
    ("stanford_cars", "cars_test_annos_withlabels.mat"),
    ("oxford_flowers", "imagelabels.mat"),
    ("oxford_flowers", "cat_to_name.json"),
    ("fgvc_aircraft", "variants.txt"),
    ("fgvc_aircraft", "images_variant_val.txt"),
    ("sun397", "ClassName.txt"),
    ("sun397", "Testing_01.txt"),
    ("ucf101", "ucfTrainTestlist/classInd.txt"),
    ("ucf101", "ucfTrainTestlist/trainlist01.txt"),
    ("imagenet", "classnames.txt"),
    ("imagenetv2", "classnames.txt"),
    ("dtd", "split_zhou_DescribableTextures.json"),
]
CONTENTS = {
    b"<!DOCTYPE html>\n<html><body>quota exceeded</body></html>": "is a web page",
    b"\xef\xbb\xbf<html>": "is a web page",
    b"": "is empty",
    b" \n": "is empty",
    b"PK\x03\x04\x14\0\0\0\x08\0": "is not a",
}


@pytest.fixture
def refusal(build, command, tmp_path):
    """refusal(stem): the error of that data set, which `--check` reports as well."""

    def ask(stem):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            build(stem)
        message = str(caught.value)
        status, out, _ = command(stem, "--check", "--root", str(tmp_path))
        assert status == 1
        # a table breaks long words
        assert "".join(message.split()) in "".join(out.split())
        return message

    return ask


@pytest.mark.parametrize(("stem", "file"), ANNOTATIONS)
def test_files_of_another_kind(stem, file, tree, refusal):
    path = tree(stem) / file
    for content, says in CONTENTS.items():
        path.write_bytes(content)
        message = refusal(stem)
        assert message.startswith(f"{path} {says}"), content
        assert "fetch it again" in message


def cars(folder, fields, rows, file="cars_test_annos_withlabels.mat"):
    table = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        table[0, index] = row
    savemat(folder / file, {"annotations": table})


@pytest.mark.parametrize(
    ("stem", "file", "content", "says"),
    [
        ("oxford_flowers", "imagelabels.mat", {"trnid": [1], "valid": [2]}, "holds trnid, valid"),
        ("oxford_flowers", "imagelabels.mat", {"labels": ["a", "b"]}, "no whole numbers"),
        ("oxford_flowers", "imagelabels.mat", {"labels": [1.5]}, "no whole numbers"),
        ("oxford_flowers", "imagelabels.mat", {"labels": [9]}, "the class '9', which is not"),
        ("stanford_cars", "devkit/cars_meta.mat", {"names": [1]}, "it holds names"),
        ("stanford_cars", "cars_test_annos_withlabels.mat", {"x": 1}, "it holds x"),
        ("stanford_cars", "cars_test_annos_withlabels.mat", {"annotations": [1]}, "no fields"),
    ],
)
def test_other_matlab_files(stem, file, content, says, tree, refusal):
    path = tree(stem) / file
    savemat(path, content)
    message = refusal(stem)
    assert message.startswith(str(path)) and says in message


def test_cars_test_annotations_without_labels(tree, refusal):
    """Those of the devkit, under the name of the ones with labels."""
    folder = tree("stanford_cars")
    cars(folder, ["bbox_x1", "fname"], [(1, "00001.jpg")])
    message = refusal("stanford_cars")
    assert "has no classes" in message and "the file with labels is needed" in message


@pytest.mark.parametrize("label", [0, 4, -1, 1.5, "x", []])
def test_cars_of_no_class(label, tree, refusal):
    folder = tree("stanford_cars")
    cars(folder, ["class", "fname"], [(1, "00001.jpg"), (label, "00002.jpg")])
    assert "image 2 has the class" in refusal("stanford_cars")


def test_numbers_that_were_saved_as_floats(tree, build):
    cars_folder, flowers = tree("stanford_cars"), tree("oxford_flowers")
    rows = [(float(n % 3 + 1), f"{n + 1:05d}.jpg") for n in range(12)]
    cars(cars_folder, ["class", "fname"], rows)
    savemat(flowers / "imagelabels.mat", {"labels": np.array([[2.0, 1.0, 3.0] * 10])})
    for stem in ("stanford_cars", "oxford_flowers"):
        assert tuple(build(stem).classnames) == BY_STEM[stem].classnames


LINES = [
    ("oxford_pets", "annotations/test.txt", 3, "Abyssinian_13", "not <image name> <class id"),
    ("oxford_pets", "annotations/test.txt", 1, "Abyssinian_11 one 1 1", "'one' where a number"),
    ("oxford_pets", "annotations/test.txt", 2, "Abyssinian_12 2 1 1", "give it one name"),
    ("oxford_pets", "annotations/test.txt", 2, "Abyssinian 1 1 1", "class name '' is empty"),
    ("fgvc_aircraft", "variants.txt", 4, "F/A-18", "names the class 'F/A-18' again"),
    ("fgvc_aircraft", "variants.txt", 2, "__", "class name '__' is empty"),
    ("fgvc_aircraft", "images_variant_val.txt", 2, "0000101", "not <image id> <variant>"),
    ("fgvc_aircraft", "images_variant_val.txt", 2, "0000101 Concorde", "not in the class list"),
    ("sun397", "ClassName.txt", 3, "/a", "class name '' is empty"),
    ("sun397", "ClassName.txt", 3, "/a/abbey", "names the class '/a/abbey' again"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", 2, "2", "not <class id from 1> <action>"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", 2, "two YoYo", "'two' where a number"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", 2, "1 YoYo", "give it one name"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", 3, "3 YoYo", "a second class id"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", 3, "3 archery", "class name '' is empty"),
    ("ucf101", "ucfTrainTestlist/testlist01.txt", 2, "v_YoYo.avi", "not <action>/<video>.avi"),
    ("imagenet", "classnames.txt", 2, "n01443537", "not <wnid> <class name>"),
    ("imagenet", "classnames.txt", 2, "n01443537 _", "class name '_' is empty"),
    ("imagenet", "classnames.txt", 2, "n01440764 goldfish", "a second name, 'goldfish' after"),
    ("imagenet_a", "classnames.txt", 3, "n01484850", "not <wnid> <class name>"),
    ("imagenetv2", "classnames.txt", 3, "n00001014", "not <wnid> <class name>"),
]


@pytest.mark.parametrize(("stem", "file", "number", "line", "says"), LINES)
def test_wrong_lines_are_named(stem, file, number, line, says, tree, refusal):
    path = tree(stem) / file
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write_lines(path, ["# a comment", "", *lines])
    message = refusal(stem)
    assert f"{path}, line {number + 2}" in message and says in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "it holds something else"),
        ('{"1": ["a"]}', "it holds something else"),
        ('{"1": "a", "2": "b", "1": "c"}', "it has '1' twice"),
        ('{"1": "a", "2": " _", "3": "c"}', "'2': the class name ' _' is empty"),
        ('{"1": "a", "2": "b"}', "the class '3', which is not in the class list"),
        ("{", "not valid JSON"),
    ],
)
def test_names_of_flowers(text, says, tree, refusal):
    (tree("oxford_flowers") / "cat_to_name.json").write_text(text)
    assert says in refusal("oxford_flowers")


@pytest.mark.parametrize("name", ["", " ", 5])
def test_names_of_cars(name, tree, refusal):
    names = np.empty((1, 3), dtype=object)
    names[0] = ["AM General Hummer SUV 2000", name, "Ram C/V Cargo Van 2009"]
    folder = tree("stanford_cars")
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    assert "cars_meta.mat, class 2: the class name" in refusal("stanford_cars")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: [row[0], row[1], ""], "val image 1: the class name '' is empty"),
        (lambda row: [row[0], row[1], "_ _"], "val image 1: the class name '_ _' is empty"),
        (lambda row: [row[0], row[1], "other"], "is named 'other', and 'banded' in"),
        (lambda row: [row[0], str(row[1]), row[2]], "val image 1 reads"),
        (lambda row: [row[0], 0.5, row[2]], "val image 1 reads"),
        (lambda row: [row[0], True, row[2]], "val image 1 reads"),
        (lambda row: [row[0], row[1], None], "val image 1 reads"),
        (lambda row: [None, row[1], row[2]], "val image 1 reads"),
        (lambda row: row[:2], "val image 1 reads"),
        (lambda row: "row", "val image 1 reads"),
    ],
)
def test_wrong_entries_of_a_split_file(change, says, tree, build, refusal):
    path = tree("dtd") / BY_STEM["dtd"].split_file
    build("dtd")
    split = json.loads(path.read_text())
    split["val"][0] = change(split["val"][0])
    path.write_text(json.dumps(split))
    message = refusal("dtd")
    assert str(path) in message and says in message


def test_a_class_name_that_is_a_number(tree, build):
    path = tree("dtd") / BY_STEM["dtd"].split_file
    build("dtd")
    split = json.loads(path.read_text())
    rows = {part: [[p, n, 707 if n == 1 else c] for p, n, c in rs] for part, rs in split.items()}
    path.write_text(json.dumps(rows))
    assert build("dtd").classnames[1] == "707"


def test_classes_of_the_same_name_are_noted_once(tree, build, capsys):
    """An official list may have such names: nothing to refuse."""
    folder = tree("imagenet")
    names = [*WNIDS.values()]
    names[3] = "Tench"
    write_lines(folder / "classnames.txt", [f"{w} {n}" for w, n in zip(WNIDS, names, strict=True)])
    build("imagenet")
    note = "gives the labels 0 and 3 the same class name 'tench'"
    assert capsys.readouterr().out.count(note) == 1


# --- texts and paths from Windows --------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "file"), [entry for entry in ANNOTATIONS if entry[1].endswith((".txt", ".json"))]
)
def test_lists_as_windows_saves_them(stem, file, tree, build):
    folder = tree(stem)
    expected = build(stem)
    for path in [*folder.glob("*.json"), *folder.glob("split_fewshot/*")]:
        if path.name not in (file, "cat_to_name.json"):
            path.unlink()
    path = folder / file
    text = path.read_bytes().replace(b"\n", b"\r\n")
    if stem in ("sun397", "ucf101"):
        text = text.replace(b"/", b"\\")
    path.write_bytes(b"\xef\xbb\xbf" + text)
    found = build(stem)
    assert found.classnames == expected.classnames
    assert [i.impath for i in found.train_x] == [i.impath for i in expected.train_x]


@pytest.mark.parametrize("stem", ["dtd", "stanford_cars"])
def test_split_file_with_backslashes(stem, tree, build):
    path = tree(stem) / BY_STEM[stem].split_file
    expected = build(stem)
    split = json.loads(path.read_text())
    rows = {part: [[p.replace("/", "\\"), n, c] for p, n, c in rs] for part, rs in split.items()}
    path.write_text(json.dumps(rows))
    found = build(stem)
    for part in ("train_x", "val", "test"):
        paths = [[i.impath for i in getattr(data, part)] for data in (found, expected)]
        assert paths[0] == paths[1]
    shots = [build(stem, "DATASET.NUM_SHOTS", 2) for _ in range(2)]
    assert [i.impath for i in shots[0].train_x] == [i.impath for i in shots[1].train_x]


def test_backslashes_in_the_names_of_files_stay(tmp_path, build):
    folder = tmp_path / "dtd" / "images"
    for name in ("a", "b"):
        class_folders(folder, [name], 10)
        for image in (folder / name).iterdir():
            image.rename(image.with_name(f"x\\{image.name}"))
    assert len(build("dtd").train_x) == 10  # generates the split file
    assert len(build("dtd").train_x) == 10  # reads it
