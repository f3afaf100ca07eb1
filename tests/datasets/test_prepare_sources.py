"""What `datasets/sources.yaml`, or a table of the user's own, says."""

from __future__ import annotations

import pytest

from datasets.preparation.inspection import dataset_class
from datasets.preparation.sources import choose
from tests.datasets.miniatures import BY_STEM, CONFIGS, VARIANTS
from tests.datasets.mirror import SHIPPED, STEMS

ROOT = CONFIGS.parents[1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "not a YAML file"),
        ("[]", "holds no data sets"),
        ("dtd: {classes: 1, images: [1, 1, 1]}", "'dtd'"),
        ("dtd: {classes: 1, images: [1, 1], files: []}", "'dtd'"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: a, url: b}]}", "'url'"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: a, urls: b}]}", "lists"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: ../a}]}", "out of the data root"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: a, place: [/a]}]}", "out of"),
    ],
)
def test_wrong_table_of_sources(text, part, command, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    status, _, err = command("dtd", "--sources", str(path))
    assert status == 2
    assert str(path) in err and part in err


def test_all_stands_for_every_data_set_with_a_source():
    assert choose(["dtd", "all"], SHIPPED) == ["dtd", *(s for s in SHIPPED if s != "dtd")]
    assert set(SHIPPED) == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_shipped_table_agrees_with_the_classes(stem):
    cls, source = dataset_class(stem), SHIPPED[stem]
    placed = [path for file in source.files for path in file.place]
    assert len(set(placed)) == len(placed)
    if cls.split_file:
        assert cls.split_file in placed
    for file in source.files:
        assert file.addresses or file.manual
        assert not file.md5 or len(bytes.fromhex(file.md5)) == 16


def test_guide_s_sizes_are_those_of_the_table():
    guide = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    section = guide.split("## Classes and sizes")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    cells = {line[0].strip(" `"): [cell.strip() for cell in line[1:]] for line in lines}
    assert list(cells) == list(SHIPPED)
    for stem, source in SHIPPED.items():
        half = (source.classes + 1) // 2
        train, val, test = ["" if n is None else f"{n:,}" for n in source.images]
        classes = f"{half} + {source.classes - half}"
        if BY_STEM[stem] in VARIANTS:
            classes = f"test only, {source.classes}"
        if stem == "imagenet":
            train, val = "1.28 M", "= test"
        assert cells[stem] == [classes, train, val, test]
