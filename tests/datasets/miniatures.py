"""Miniatures of the real data sets: same folders, file names and annotation formats, few images."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"


def write_image(path: Path) -> None:
    """A 6 x 6 image whose colour follows from its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = zlib.crc32(path.name.encode())
    colour = (shade & 255, shade >> 8 & 255, shade >> 16 & 255)
    Image.new("RGB", (6, 6), colour).save(path)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def class_folders(folder: Path, names: list[str], n_images: int) -> None:
    for name in names:
        for number in range(1, n_images + 1):
            write_image(folder / name / f"{name}_{number:04d}.jpg")


def caltech101(folder: Path) -> None:
    names = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion"]
    class_folders(folder / "101_ObjectCategories", [*names, "airplanes"], 10)
    (folder / "101_ObjectCategories" / "accordion" / "notes.txt").write_text("no image")


def oxford_pets(folder: Path) -> None:
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau"]
    for part, numbers in (("trainval", range(1, 11)), ("test", range(11, 15))):
        lines = []
        for class_id, breed in enumerate(breeds, start=1):
            for number in numbers:
                write_image(folder / "images" / f"{breed}_{number}.jpg")
                lines.append(f"{breed}_{number} {class_id} 1 {class_id}")
        write_lines(folder / "annotations" / f"{part}.txt", lines)


def stanford_cars(folder: Path) -> None:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2009"]
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    (folder / "devkit").mkdir(parents=True)
    cells = np.empty((1, len(names)), dtype=object)
    cells[0] = names
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    for part, count, target in (
        ("cars_train", 30, "devkit/cars_train_annos.mat"),
        ("cars_test", 12, "cars_test_annos_withlabels.mat"),
    ):
        rows = np.empty((1, count), dtype=[(field, object) for field in fields])
        for index in range(count):
            image = f"{index + 1:05d}.jpg"
            write_image(folder / part / image)
            rows[0, index] = (1, 2, 5, 6, index % len(names) + 1, image)
        savemat(folder / target, {"annotations": rows})


def oxford_flowers(folder: Path) -> None:
    labels = [2, 1, 3] * 10
    for number in range(1, len(labels) + 1):
        write_image(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    names = {"2": "hard-leaved pocket orchid", "1": "pink primrose", "3": "canterbury bells"}
    (folder / "cat_to_name.json").write_text(json.dumps(names))


def food101(folder: Path) -> None:
    class_folders(folder / "images", ["beef_tartare", "apple_pie", "waffles"], 10)


def fgvc_aircraft(folder: Path) -> None:
    variants = ["707-320", "F/A-18", "A340-300", "Cessna 172"]
    write_lines(folder / "variants.txt", variants)
    for base, part in ((0, "train"), (100, "val"), (200, "test")):
        lines = []
        for index in range(12):
            write_image(folder / "images" / f"{base + index:07d}.jpg")
            lines.append(f"{base + index:07d} {variants[index % 4]}")
        write_lines(folder / f"images_variant_{part}.txt", lines)


def sun397(folder: Path) -> None:
    classes = ["/a/abbey", "/a/apartment_building/outdoor", "/b/bathroom"]
    write_lines(folder / "ClassName.txt", classes)
    for name, numbers in (("Training_01.txt", range(10)), ("Testing_01.txt", range(10, 14))):
        lines = [f"{path}/sun_{number:06d}.jpg" for path in classes for number in numbers]
        for line in lines:
            write_image(folder / "SUN397" / line[1:])
        write_lines(folder / name, lines)


def dtd(folder: Path) -> None:
    class_folders(folder / "images", ["banded", "zigzagged", "blotchy", "polka-dotted"], 10)


def eurosat(folder: Path) -> None:
    class_folders(folder / "2750", ["SeaLake", "AnnualCrop", "Highway", "River", "Forest"], 10)


def ucf101(folder: Path) -> None:
    actions = ["ApplyEyeMakeup", "YoYo", "Archery"]
    lists = folder / "ucfTrainTestlist"
    write_lines(lists / "classInd.txt", [f"{i} {a}" for i, a in enumerate(actions, start=1)])
    image_folders = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "YoYo": "Yo_Yo", "Archery": "Archery"}
    for name, groups in (("trainlist01", range(8, 18)), ("testlist01", range(1, 5))):
        lines = []
        for class_id, action in enumerate(actions, start=1):
            for group in groups:
                video = f"v_{action}_g{group:02d}_c01"
                write_image(folder / "UCF-101-midframes" / image_folders[action] / f"{video}.jpg")
                suffix = f" {class_id}" if name == "trainlist01" else ""
                lines.append(f"{action}/{video}.avi{suffix}")
        write_lines(lists / f"{name}.txt", lines)


WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
}


def wnid_tree(folder: Path, image_dir: str, wnids: list[str], n_images: int) -> None:
    write_lines(folder / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])
    for wnid in wnids:
        for number in range(n_images):
            write_image(folder / image_dir / wnid / f"{wnid}_{number}.JPEG")


def imagenet(folder: Path) -> None:
    wnid_tree(folder, "images/train", list(WNIDS), 6)
    for number, wnid in enumerate(WNIDS):
        for image in range(3):
            name = f"ILSVRC2012_val_{3 * number + image + 1:08d}.JPEG"
            write_image(folder / "images" / "val" / wnid / name)


def imagenetv2(folder: Path) -> None:
    lines = [f"n{1000 + 7 * number:08d} class {number}" for number in range(12)]
    write_lines(folder / "classnames.txt", lines)
    for number in range(12):
        write_image(
            folder / "imagenetv2-matched-frequency-format-val" / str(number) / f"x{number}.jpeg"
        )


def imagenet_sketch(folder: Path) -> None:
    wnid_tree(folder, "images", list(WNIDS), 2)


def imagenet_a(folder: Path) -> None:
    wnid_tree(folder, "imagenet-a", list(WNIDS)[1:4], 2)
    (folder / "imagenet-a" / "README.txt").write_text("not a class")


def imagenet_r(folder: Path) -> None:
    wnid_tree(folder, "imagenet-r", list(WNIDS)[2:], 2)
    (folder / "imagenet-r" / "README.txt").write_text("not a class")


@dataclass(frozen=True)
class Miniature:
    """What is expected of one miniature: class names by label, images per list, split file."""

    stem: str
    name: str
    folder: str
    build: Callable[[Path], None]
    classnames: tuple[str, ...]
    sizes: tuple[int, int, int]
    split_file: str | None = None
    image_dir: str = "images"

    def make(self, root: Path) -> Path:
        """Write the miniature below the data root; returns the data set's folder."""
        folder = root / self.folder
        self.build(folder)
        return folder


REAL = [
    Miniature(
        "caltech101",
        "Caltech101",
        "caltech-101",
        caltech101,
        ("face", "leopard", "motorbike", "accordion", "airplane"),
        (25, 10, 15),
        "split_zhou_Caltech101.json",
        "101_ObjectCategories",
    ),
    Miniature(
        "oxford_pets",
        "OxfordPets",
        "oxford_pets",
        oxford_pets,
        ("abyssinian", "american_bulldog", "egyptian_mau"),
        (24, 6, 12),
        "split_zhou_OxfordPets.json",
    ),
    Miniature(
        "stanford_cars",
        "StanfordCars",
        "stanford_cars",
        stanford_cars,
        ("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2009 Ram C/V Cargo Van"),
        (24, 6, 12),
        "split_zhou_StanfordCars.json",
        ".",
    ),
    Miniature(
        "oxford_flowers",
        "OxfordFlowers",
        "oxford_flowers",
        oxford_flowers,
        ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
        (15, 6, 9),
        "split_zhou_OxfordFlowers.json",
        "jpg",
    ),
    Miniature(
        "food101",
        "Food101",
        "food-101",
        food101,
        ("apple_pie", "beef_tartare", "waffles"),
        (15, 6, 9),
        "split_zhou_Food101.json",
    ),
    Miniature(
        "fgvc_aircraft",
        "FGVCAircraft",
        "fgvc_aircraft",
        fgvc_aircraft,
        ("707-320", "F/A-18", "A340-300", "Cessna 172"),
        (12, 12, 12),
    ),
    Miniature(
        "sun397",
        "SUN397",
        "sun397",
        sun397,
        ("abbey", "outdoor apartment_building", "bathroom"),
        (24, 6, 12),
        "split_zhou_SUN397.json",
        "SUN397",
    ),
    Miniature(
        "dtd",
        "DescribableTextures",
        "dtd",
        dtd,
        ("banded", "blotchy", "polka-dotted", "zigzagged"),
        (20, 8, 12),
        "split_zhou_DescribableTextures.json",
    ),
    Miniature(
        "eurosat",
        "EuroSAT",
        "eurosat",
        eurosat,
        ("Annual Crop Land", "Forest", "Highway or Road", "River", "Sea or Lake"),
        (25, 10, 15),
        "split_zhou_EuroSAT.json",
        "2750",
    ),
    Miniature(
        "ucf101",
        "UCF101",
        "ucf101",
        ucf101,
        ("Apply_Eye_Makeup", "Yo_Yo", "Archery"),
        (24, 6, 12),
        "split_zhou_UCF101.json",
        "UCF-101-midframes",
    ),
    Miniature(
        "imagenet", "ImageNet", "imagenet", imagenet, tuple(WNIDS.values()), (30, 15, 15), None
    ),
]

VARIANTS = [
    Miniature(
        "imagenetv2",
        "ImageNetV2",
        "imagenetv2",
        imagenetv2,
        tuple(f"class {number}" for number in range(12)),
        (12, 0, 12),
    ),
    Miniature(
        "imagenet_sketch",
        "ImageNetSketch",
        "imagenet-sketch",
        imagenet_sketch,
        tuple(WNIDS.values()),
        (10, 0, 10),
    ),
    Miniature(
        "imagenet_a",
        "ImageNetA",
        "imagenet-adversarial",
        imagenet_a,
        tuple(WNIDS.values())[1:4],
        (6, 0, 6),
    ),
    Miniature(
        "imagenet_r",
        "ImageNetR",
        "imagenet-rendition",
        imagenet_r,
        tuple(WNIDS.values())[2:],
        (6, 0, 6),
    ),
]

BY_STEM = {miniature.stem: miniature for miniature in REAL + VARIANTS}
