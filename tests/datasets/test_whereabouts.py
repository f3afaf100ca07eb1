"""Data under another name, or a folder too deep: what lies there and what is expected is said."""

from __future__ import annotations

import shutil

import pytest

from datasets.preparation.inspection import dataset_class
from tests.datasets.miniatures import BY_STEM, CONFIGS, REAL, VARIANTS

GUIDE = (CONFIGS.parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")


def move(root, source, target):
    """Move a path below the data root, also into a folder of its own name."""
    shutil.move(root / source, root / "moving")
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / "moving", root / target)


MOVED = [
    # data set; moves; what lies there; in --check: state
    ("eurosat", [("eurosat/2750", "eurosat/EuroSAT_RGB")], "eurosat holds EuroSAT_RGB/", "missing"),
    ("eurosat", [("eurosat", "EuroSAT_RGB")], "holds EuroSAT_RGB/", "missing"),
    ("oxford_flowers", [("oxford_flowers/jpg", "oxford_flowers/images")], "images/", "incomplete"),
    (
        "sun397",
        [("sun397/SUN397/a", "sun397/train/a"), ("sun397/SUN397/b", "sun397/test/b")]
        + [("sun397/SUN397", "other"), ("sun397/ClassName.txt", "other/ClassName.txt")]
        + [(f"sun397/{part}_01.txt", f"other/{part}") for part in ("Training", "Testing")],
        "sun397 holds test/, train/",
        "missing",
    ),
    (
        "sun397",
        [("sun397/SUN397/a", "sun397/SUN397/train/a"), ("sun397/SUN397/b", "sun397/SUN397/test/b")],
        "SUN397 holds test/, train/",
        "incomplete",
    ),
    (
        "fgvc_aircraft",
        [("fgvc_aircraft", "fgvc_aircraft/fgvc-aircraft-2013b/data")],
        "fgvc-aircraft-2013b/data/images should be images",
        "missing",
    ),
    (
        "fgvc_aircraft",
        [("fgvc_aircraft", "fgvc-aircraft-2013b/data")],
        "holds fgvc-aircraft-2013b/",
        "missing",
    ),
    ("imagenet_r", [("imagenet-rendition", "imagenet-r")], "holds imagenet-r/", "missing"),
    (
        "imagenet",
        [(f"imagenet/images/{part}", f"imagenet/{part}") for part in ("train", "val")]
        + [("imagenet/images", "other")],
        "imagenet holds train/, val/, classnames.txt",
        "incomplete",
    ),
    (
        "stanford_cars",
        [(f"stanford_cars/{x}", f"stanford_cars/{x}/{x}") for x in ("cars_train", "cars_test")],
        "cars_train/cars_train/00001.jpg should be cars_train/00001.jpg",
        "incomplete",
    ),
    (
        "stanford_cars",
        [("stanford_cars/devkit", "stanford_cars/car_devkit/devkit")],
        "car_devkit/devkit/cars_meta.mat should be devkit/cars_meta.mat",
        "incomplete",
    ),
    ("stanford_cars", [("stanford_cars", "stanford_cars/car_data")], "holds car_data/", "missing"),
    ("dtd", [("dtd", "dtd/dtd")], "dtd/images should be images", "missing"),
    (
        "ucf101",
        [("ucf101/UCF-101-midframes", "ucf101/UCF-101-midframes/UCF-101-midframes")],
        "UCF-101-midframes holds UCF-101-midframes/",
        "incomplete",
    ),
]


@pytest.mark.parametrize(("stem", "moves", "says", "state"), MOVED)
def test_data_elsewhere(stem, moves, says, state, tree, build, command, tmp_path):
    tree(stem)
    for source, target in moves:
        move(tmp_path, source, target)
    with pytest.raises(FileNotFoundError) as caught:
        build(stem)
    layout = dataset_class(stem).layout
    status, out, _ = command(stem, "--check", "--root", str(tmp_path))
    assert status == 1
    # a table breaks long words
    out = "".join(out.split())
    assert f"{stem}{state}:" in out
    for text in (str(caught.value), out):
        assert says.replace(" ", "") in text.replace(" ", "")
        assert layout.replace(" ", "") in text.replace(" ", "")


def test_a_folder_that_has_nothing_of_it(build, command, tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match="holds pictures/"):
        build("dtd")
    # what it has to do with the data set nobody knows
    assert "pictures" not in command("dtd", "--check", "--root", str(tmp_path))[1]


@pytest.mark.parametrize(
    ("stem", "folder"),
    [
        ("dtd", "dtd/images/extra"),
        ("eurosat", "eurosat/2750/Extra"),
        ("imagenet_a", "imagenet-adversarial/imagenet-a/n01440764"),
        ("imagenetv2", "imagenetv2/imagenetv2-matched-frequency-format-val/3"),
    ],
)
@pytest.mark.parametrize(
    ("content", "says"), [(None, "is empty"), ("notes.txt", "holds notes.txt"), ("a/", "holds a/")]
)
def test_a_class_folder_without_images(stem, folder, content, says, tree, build, command, tmp_path):
    tree(stem)
    path = tmp_path / folder
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    if content:
        (path / content).mkdir() if content.endswith("/") else (path / content).touch()
    with pytest.raises(ValueError, match="has no image") as caught:
        build(stem)
    assert f"class folder {path}" in str(caught.value) and says in str(caught.value)
    out = command(stem, "--check", "--root", str(tmp_path))[1]
    assert f"classfolder{path}hasnoimage" in "".join(out.split())


def test_more_numbered_folders_than_classes(tree, build):
    (tree("imagenetv2") / "imagenetv2-matched-frequency-format-val" / "12").mkdir()
    with pytest.raises(ValueError, match=r"/12 .*classnames\.txt names 12 classes, from 0 to 11"):
        build("imagenetv2")


@pytest.mark.parametrize("stem", ["dtd", "imagenet_r", "imagenetv2"])
def test_images_without_class_folders(stem, tree, build, tmp_path):
    tree(stem)
    folder = tmp_path / BY_STEM[stem].folder / dataset_class(stem).image_dir
    images = [path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")]
    for number, image in enumerate(images):
        image.rename(folder / f"{number}.jpg")
    for path in folder.iterdir():
        if path.is_dir():
            path.rmdir()
    with pytest.raises(ValueError, match=f"holds {len(images)} images: sort the images into <"):
        build(stem)


@pytest.mark.parametrize("miniature", REAL + VARIANTS, ids=lambda m: m.stem)
def test_the_layout_is_that_of_the_guide(miniature):
    start = f"| `{miniature.stem}` | `{miniature.name}` |"
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(start)]
    assert row.split("|")[4].strip().replace("`", "") == dataset_class(miniature.stem).layout
