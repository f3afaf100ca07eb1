"""A user's own images: one folder per class, or a list of images in a CSV or JSONL file."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from torchvision.datasets.folder import IMG_EXTENSIONS

from dassl.config import CfgNode
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils.tools import HOW_TO_DECODE, PHOTO_SUFFIXES, REPLACE, decodable
from support.words import counted

from .annotations import as_clip_reads, check_name
from .fewshot import FewShotDataset
from .image_lists import composed, part_meant_by, read_class_names, read_image_list
from .items import PARTS, check_images, list_folders, make_item

EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", *decodable(PHOTO_SUFFIXES))
#: endings of photos for which a decoder is missing
UNDECODED = tuple(suffix for suffix in PHOTO_SUFFIXES if suffix not in EXTENSIONS)
# folders of a data set that are not classes: the shots' cache, and what macOS adds to archives
NO_CLASSES = ("split_fewshot", "__MACOSX")

#: part (train, val, test) -> class -> paths relative to one folder
Listing = dict[str, dict[str, list[str]]]


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    """Images in folders ``<part>/<class>/`` (train, val, test) or ``<class>/``, or in a list.

    A missing val or test part is split off the training images, in the same way for every seed and
    on every machine. With test images alone the data set is for evaluation: their list is also the
    training list, since class names are taken from that, and no shots are drawn. With
    TEST_FRACTION 0 and no test images there is no test list, and nothing is tested.
    docs/own_images.md describes the layouts and files.
    """

    image_dir = "."
    guide = "see docs/own_images.md"
    image_remedy = REPLACE

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        """Declare the data set's own options."""
        cfg.DATASET.IMAGEFOLDER = node = CfgNode()
        #: folder of the data set below DATASET.ROOT, or absolute; empty: DATASET.ROOT itself
        node.FOLDER = ""
        #: CSV or JSONL file in that folder that lists the images; empty: folders give the classes
        node.LIST = ""
        #: file in that folder that names the classes; empty: folder names or labels are the names
        node.CLASSNAMES = ""
        #: share of each class for validation, where there is no val part (0: the test images serve)
        node.VAL_FRACTION = 0.2
        #: share of each class for the test, where there is no test part (1: evaluation only, 0: no
        #: test)
        node.TEST_FRACTION = 0.3

    def __init__(self, cfg):
        self.options = options = cfg.DATASET.IMAGEFOLDER
        p_val, p_test = options.VAL_FRACTION, options.TEST_FRACTION
        if p_test != 1 and not (p_val >= 0 and p_test >= 0 and p_val + p_test < 1):
            raise ValueError(
                f"DATASET.IMAGEFOLDER.VAL_FRACTION {p_val} and TEST_FRACTION {p_test} must leave "
                "training images: 0 <= VAL_FRACTION, 0 <= TEST_FRACTION, and a sum below 1 "
                "(or TEST_FRACTION 1 for evaluation only)"
            )
        if not (cfg.DATASET.ROOT or options.FOLDER):
            raise ValueError("DATASET.ROOT is empty: name the folder of the images, e.g. --root")
        self.dataset_dir = os.path.expanduser(options.FOLDER)
        self.test_only = False
        super().__init__(cfg)

    def read_data(self):
        if self.options.LIST:
            source = self.annotation_file(self.options.LIST)
            base, listing = self._read_list(source)
        else:
            source = base = self.dataset_dir
            listing = self._read_folders()
        given = tuple(part for part in PARTS if part in listing)
        self._fill_parts(listing, source)
        classes = sorted({name for part in listing.values() for name in part}, key=_class_order)
        names = self._name_classes(classes, source)
        self._check_classes(listing, classes, source)
        lists = {
            part: [
                make_item(os.path.join(base, path), label, name)
                for label, (key, name) in enumerate(zip(classes, names, strict=True))
                for path in members.get(key, ())
            ]
            for part, members in listing.items()
        }
        sizes = [
            f"{part} {len(lists[part])}{'' if part in given or self.test_only else ' (split off)'}"
            for part in PARTS
            if part in lists
        ]
        if "test" not in lists:
            sizes.append("no test (TEST_FRACTION 0)")
        print(f"Images of {source}: {', '.join(sizes)}")
        if self.options.LIST:
            images = (item for items in lists.values() for item in items)
            check_images(images, source, guide=self.guide)
        return lists["train"], lists.get("val"), lists.get("test")

    def sample_shots(self, train, val, shots, seed):
        if self.test_only:
            return train, val
        return super().sample_shots(train, val, shots, seed)

    def read_shared_shots(self, train, val, shots, seed):
        if self.test_only:
            return train, val
        return super().read_shared_shots(train, val, shots, seed)

    # --- where the images are -----------------------------------------------------------------

    def _read_folders(self) -> Listing:
        root = self.dataset_dir
        folders = [name for name in list_folders(root) if name not in NO_CLASSES]
        parts: dict[str, str] = {}
        for name in folders:
            part = part_meant_by(name)
            if part and list_folders(f"{root}/{name}"):
                if part in parts:
                    raise ValueError(
                        f"{root} holds {parts[part]} and {name}, which both mean {part}: keep one"
                    )
                parts[part] = name
        if not {"train", "test"} & set(parts):
            if all(map(part_meant_by, folders)):
                what = f"{', '.join(folders)} without class folders in them" if folders else "none"
                raise ValueError(
                    f"{root} must hold a folder per class, or train/<class>/; its folders: {what} "
                    f"({self.guide})"
                )
            return {"train": self._read_classes("", folders)}
        read = [parts[part] for part in PARTS if part in parts]
        if others := [name for name in folders if name not in read]:
            print(f"Note: in {root} only {', '.join(read)} are read, not {', '.join(others)}")
        return {
            part: self._read_classes(name, list_folders(f"{root}/{name}"))
            for part, name in parts.items()
        }

    def _read_classes(self, part: str, folders: Iterable[str]) -> dict[str, list[str]]:
        """List the images of class folders.

        Returns:
            ``{class: sorted paths}``, relative to the data set folder.
        """
        classes: dict[str, list[str]] = {}
        skipped = []
        for folder in folders:
            path = os.path.join(part, folder)
            entries = sorted(os.listdir(os.path.join(self.dataset_dir, path)))
            entries = [os.path.join(path, name) for name in entries if not name.startswith(".")]
            images = [name for name in entries if name.lower().endswith(EXTENSIONS)]
            others = [name for name in entries if not name.lower().endswith(EXTENSIONS)]
            if not images:
                found = f"; it holds {len(others)} others, such as {others[0]}" if others else ""
                wanted = undecoded_photos(others) or "add images to it or remove it"
                raise ValueError(
                    f"class folder {os.path.join(self.dataset_dir, path)} has no image "
                    f"({' '.join(EXTENSIONS)}){found}: {wanted}"
                )
            if composed(folder) in classes:
                raise ValueError(
                    f"two folders in {os.path.join(self.dataset_dir, part)} are named {folder!r}, "
                    "written in composed and in decomposed Unicode: merge them"
                )
            classes[composed(folder)] = images
            skipped += others
        if photos := undecoded_photos([os.path.join(self.dataset_dir, name) for name in skipped]):
            print(f"Note: {photos}")
        skipped = [name for name in skipped if not name.lower().endswith(UNDECODED)]
        if skipped:
            print(
                "Note: not read in class folders, since they are no images: "
                f"{counted(len(skipped), 'file or folder', 'files or folders')} (first: "
                f"{os.path.join(self.dataset_dir, skipped[0])})"
            )
        return classes

    def _read_list(self, source: str) -> tuple[str, Listing]:
        """Read the list; return the folder that its paths are relative to, and its images."""
        folders = (os.path.dirname(source), self.dataset_dir)
        rows = read_image_list(source, folders)
        paths = [row.path for row in rows]
        base = next(
            (f for f in folders if any(os.path.isfile(os.path.join(f, path)) for path in paths)),
            folders[0],
        )
        listing: Listing = {}
        for row in sorted(rows, key=lambda row: row.path):
            members = listing.setdefault(row.part or "train", defaultdict(list))
            members[row.label].append(row.path)
        return base, listing

    # --- parts and classes --------------------------------------------------------------------

    def _fill_parts(self, listing: Listing, source: str) -> None:
        """Split off the parts that are missing, in place."""
        p_val = 0 if "val" in listing else self.options.VAL_FRACTION
        p_test = 0 if "test" in listing else self.options.TEST_FRACTION
        if p_test == 1 and "train" in listing:
            listing["test"] = listing.pop("train")
        if "train" in listing and (p_val or p_test):
            train = listing.pop("train")
            for part, fraction in (("train", 1), ("val", p_val), ("test", p_test)):
                if fraction:
                    listing[part] = {}
            for name, paths in train.items():
                pieces = split_by_fraction(paths, p_val, p_test)
                for part, piece in zip(PARTS, pieces, strict=True):
                    if piece:
                        listing[part][name] = piece
        if p_test and "train" in listing and not listing["test"]:
            raise ValueError(
                f"{source}: no class has two images, of which one could be for the test: add "
                "images, or set DATASET.IMAGEFOLDER.TEST_FRACTION 0 to train without a test"
            )
        if "train" not in listing:
            if "test" not in listing:
                raise ValueError(f"{source} has neither train nor test images")
            print(
                "Note: there are no training images, so this data set is for evaluation only: "
                "a model trained on it would be trained on its test images"
            )
            self.test_only = True
            listing["train"] = listing["test"]

    def _name_classes(self, classes: Sequence[str], source: str) -> list[str]:
        names = list(classes)
        if self.options.CLASSNAMES:
            file = self.annotation_file(self.options.CLASSNAMES)
            names, source = read_class_names(file, classes), file
        first: dict[str, str] = {}
        for key, name in zip(classes, names, strict=True):
            text = as_clip_reads(check_name(name, source))
            if text in first:
                raise ValueError(
                    f"{source}: the classes {first[text]!r} and {key!r} have the same name "
                    f"{text!r}: rename one, or merge them"
                )
            first[text] = key
        return names

    def _check_classes(self, listing: Listing, classes: Sequence[str], source: str) -> None:
        for part in PARTS:
            missing = [name for name in classes if name not in listing.get(part, classes)]
            if missing and part == "train":
                raise ValueError(
                    f"{source}: the class {missing[0]!r} has no training image, but is in val or "
                    f"test ({len(missing)} of {len(classes)} classes are so)"
                )
            if missing:
                print(
                    f"Note: {len(missing)} of {len(classes)} classes have no {part} image "
                    f"(first: {missing[0]!r})"
                )


def undecoded_photos(paths: Iterable[str]) -> str:
    """Describe the photos among some files that cannot be decoded; empty if there are none."""
    photos = [path for path in paths if path.lower().endswith(UNDECODED)]
    if not photos:
        return ""
    endings = ", ".join(sorted({os.path.splitext(path)[1].lower() for path in photos}))
    what = counted(len(photos), f"{endings} file is", f"{endings} files are")
    return f"{what} not read (first: {photos[0]}): {HOW_TO_DECODE}"


def split_by_fraction(
    paths: Sequence[str], p_val: float, p_test: float
) -> tuple[list[str], list[str], list[str]]:
    """Split the images of one class into train, val and test, each sorted.

    The images are ordered by the SHA-256 of their relative paths, so the split depends on nothing
    but the names. At least one image is for training, and with two or more one for the test.

    Args:
        paths: relative to the data set folder, at least one, all different.
        p_val, p_test: shares, 0 to 1, with a sum below 1; 0 leaves the part empty.
    """

    def rank(path: str) -> tuple[bytes, str]:
        portable = unicodedata.normalize("NFC", path.replace(os.sep, "/"))
        # file names need not be UTF-8
        return hashlib.sha256(portable.encode(errors="surrogateescape")).digest(), path

    ranked = sorted(paths, key=rank)
    n_test = min(max(round(len(ranked) * p_test), 1 if p_test else 0), len(ranked) - 1)
    n_val = min(round(len(ranked) * p_val), len(ranked) - 1 - n_test)
    cut = n_test + n_val
    return sorted(ranked[cut:]), sorted(ranked[n_test:cut]), sorted(ranked[:n_test])


def _class_order(name: str) -> tuple[float, str]:
    """Key that sorts numbers by value, and other names by letter behind them."""
    return (int(name) if name.isdecimal() and len(name) <= 18 else float("inf"), name)
