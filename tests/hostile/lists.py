"""Readers of what describes images: splits, drawn shots, annotations, lists, names of folders."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.io import loadmat, savemat

from tests.datasets.miniatures import BY_STEM, CONFIGS

from .judging import CANARY
from .mutations import (
    Payload,
    Random,
    as_json,
    changed_bytes,
    changed_lines,
    changed_tree,
    odd_text,
    odd_value,
    write_hostile,
)
from .texts import use_names
from .weights import own_images


def build(stem: str, root: Path, *pairs: object) -> Any:
    """Build a data set by the name of its config file, with two shots per class, and use it."""
    import datasets
    from dassl.config import get_cfg_default
    from dassl.data.datasets import build_dataset
    from dassl.utils import read_image

    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{stem}.yaml"))
    options = ["DATASET.ROOT", str(root), "SEED", 1, "VERBOSE", False, "DATASET.NUM_SHOTS", 2]
    cfg.merge_from_list([*options, *pairs])
    random.seed(1)
    dataset = build_dataset(cfg)
    for item in (*dataset.train_x, *(dataset.val or ()), *dataset.test):
        assert 0 <= item.label < dataset.num_classes
        if not os.path.isfile(item.impath):
            read_image(item.impath)  # says so
    use_names(dataset.classnames)
    return dataset


def linked_tree(folder: Path, to: Path) -> None:
    """Copy a folder by hard links."""
    shutil.copytree(folder, to, copy_function=os.link, dirs_exist_ok=True)


class _InDataSet:
    """A hostile file in the folder of a data set; ``files`` are (data set, path in its folder)."""

    files: tuple[tuple[str, str], ...]
    #: whether the data set is read once before, so that it makes its own files
    made_by_use = False
    pairs: tuple[object, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for stem in dict.fromkeys(stem for stem, _ in self.files):
            BY_STEM[stem].make(folder / stem)
            if self.made_by_use:
                build(stem, folder / stem, *self.pairs)
            self.made(stem, folder / stem / BY_STEM[stem].folder)

    def made(self, stem: str, folder: Path) -> None:
        """Change the folder of a data set, once."""

    def write(self, rng: Random | None, target: Path) -> None:
        stem, file = self.files[0] if rng is None else rng.choice(self.files)
        linked_tree(self.folder / stem, target / stem)
        if rng is None:
            return
        path = target / stem / BY_STEM[stem].folder / file
        valid = path.read_bytes()
        path.unlink()
        canary = target.parent / CANARY
        write_hostile(rng, path, valid, lambda: self.change(rng, file, valid, canary), canary)

    def change(self, rng: Random, file: str, valid: bytes, canary: Path) -> bytes:
        """Return the content of a hostile file."""
        if file.endswith(".json"):
            return as_json(rng, changed_tree(rng, json.loads(valid)))
        return changed_lines(rng, valid)

    def read(self, target: Path) -> None:
        (root,) = target.iterdir()
        build(root.name, root, *self.pairs)


class SplitFile(_InDataSet):
    """CoOp's split of a data set."""

    files = (("dtd", "split_zhou_DescribableTextures.json"),)
    made_by_use = True

    def made(self, stem: str, folder: Path) -> None:
        (folder / "split_zhou_DescribableTextures.origin.json").unlink()
        shutil.rmtree(folder / "split_fewshot")


class SplitOrigin(_InDataSet):
    """Note beside a split that was generated here."""

    files = (("dtd", "split_zhou_DescribableTextures.origin.json"),)
    made_by_use = True


class DrawnShots(_InDataSet):
    """File of the images drawn for a few-shot run."""

    files = (("dtd", "split_fewshot/shot_2-seed_1.json"),)
    made_by_use = True


class PickledShots(_InDataSet):
    """Upstream's pickle of the images drawn for a few-shot run."""

    files = (("dtd", "split_fewshot/shot_2-seed_1.pkl"),)
    made_by_use = True

    def made(self, stem: str, folder: Path) -> None:
        from dassl.data.datasets import Datum

        drawn = folder / "split_fewshot/shot_2-seed_1.json"
        rows = json.loads(drawn.read_text())
        drawn.unlink()
        self.lists = {
            part: [Datum(str(folder / path), label, 0, name) for path, label, name in rows[part]]
            for part in ("train", "val")
        }
        drawn.with_suffix(".pkl").write_bytes(pickle.dumps(self.lists))

    def change(self, rng: Random, file: str, valid: bytes, canary: Path) -> bytes:
        lists = pickle.loads(valid)
        victim = rng.choice(lists["train"])
        if rng.random() < 0.4:
            lists = changed_tree(rng, lists, lambda _: Payload(canary, rng.randrange(4)))
        elif rng.random() < 0.5:
            attribute = rng.choice(("_impath", "_label", "_classname"))
            setattr(victim, attribute, rng.choice((odd_value(rng), Payload(canary))))
        else:
            lists = changed_tree(rng, lists)
        return pickle.dumps(lists, protocol=rng.randrange(5))


class SharedShots(_InDataSet):
    """Published lists of the images of a few-shot run."""

    files = tuple(("dtd", f"split_fewshot/shot_2-seed_1_{part}.jsonl") for part in ("train", "val"))
    pairs = ("DATASET.SHARED_SHOTS", True)

    def made(self, stem: str, folder: Path) -> None:
        build(stem, folder.parent)
        drawn = json.loads((folder / "split_fewshot/shot_2-seed_1.json").read_text())
        self.rows = {}
        for part in ("train", "val"):
            self.rows[part] = [
                {
                    "_impath": f"{folder.name}/{path}",
                    **{"_label": label, "_domain": 0, "_classname": name},
                }
                for path, label, name in drawn[part]
            ]
            text = "".join(json.dumps(row) + "\n" for row in self.rows[part])
            (folder / f"split_fewshot/shot_2-seed_1_{part}.jsonl").write_text(text)

    def change(self, rng: Random, file: str, valid: bytes, canary: Path) -> bytes:
        rows = changed_tree(rng, self.rows["train" if "train" in file else "val"])
        return b"\n".join(as_json(rng, row) for row in (rows if isinstance(rows, list) else [rows]))


class ImageNetLists(_InDataSet):
    """Kept lists of ImageNet's images, here and of upstream."""

    files = (("imagenet", "preprocessed.json"), ("imagenet", "preprocessed.pkl"))
    made_by_use = True

    def made(self, stem: str, folder: Path) -> None:
        from dassl.data.datasets import Datum

        stored = json.loads((folder / "preprocessed.json").read_text())
        lists = {
            part: [
                Datum(str(folder / "images" / where / name), label, 0, text)
                for where, label, text, names in stored[part]
                for name in names
            ]
            for part in ("train", "test")
        }
        (folder / "preprocessed.pkl").write_bytes(pickle.dumps(lists))

    def write(self, rng: Random | None, target: Path) -> None:
        super().write(rng, target)
        if rng is not None and rng.random() < 0.5:
            path = target / "imagenet/imagenet/preprocessed.json"
            if path.is_file() and not path.is_symlink():
                path.unlink()

    def change(self, rng: Random, file: str, valid: bytes, canary: Path) -> bytes:
        if file.endswith(".json"):
            return super().change(rng, file, valid, canary)
        lists = changed_tree(rng, pickle.loads(valid))
        if rng.random() < 0.5:
            lists = changed_tree(rng, lists, lambda _: Payload(canary, rng.randrange(4)))
        return pickle.dumps(lists, protocol=rng.randrange(5))


class AnnotationLines(_InDataSet):
    """Annotations in lines of text."""

    files = (
        ("oxford_pets", "annotations/trainval.txt"),
        ("oxford_pets", "annotations/test.txt"),
        ("fgvc_aircraft", "variants.txt"),
        ("fgvc_aircraft", "images_variant_train.txt"),
        ("sun397", "ClassName.txt"),
        ("sun397", "Training_01.txt"),
        ("ucf101", "ucfTrainTestlist/classInd.txt"),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt"),
        ("imagenet", "classnames.txt"),
        ("imagenetv2", "classnames.txt"),
    )


class AnnotationJson(_InDataSet):
    """Class names of a data set in JSON."""

    files = (("oxford_flowers", "cat_to_name.json"),)


class AnnotationMat(_InDataSet):
    """Annotations in files of MATLAB."""

    files = (
        ("stanford_cars", "devkit/cars_meta.mat"),
        ("stanford_cars", "devkit/cars_train_annos.mat"),
        ("stanford_cars", "cars_test_annos_withlabels.mat"),
        ("oxford_flowers", "imagelabels.mat"),
    )
    #: a file of some hundred kilobytes for half a gigabyte
    bomb = b""

    def change(self, rng: Random, file: str, valid: bytes, canary: Path) -> bytes:
        table = loadmat(io.BytesIO(valid))
        (name,) = (key for key in table if not key.startswith("__"))
        values = table[name]
        action = rng.randrange(6)
        if action == 0:
            values = rng.choice((values[:0], values.T, np.zeros((2, 3)), "text", {}, values[0, 0]))
        elif action == 1:
            name = rng.choice(("other", "labels", "annotations", "class_names"))
        elif action == 2 and rng.random() < 0.1:
            return self._bomb(name)
        elif values.dtype.names:
            field = rng.choice(values.dtype.names)
            if rng.random() < 0.3:
                others = [n for n in values.dtype.names if n != field]
                values = values[others]
            else:
                values[0, rng.randrange(values.shape[1])][field] = _odd_cell(rng)
        elif values.dtype == object:
            values[0, rng.randrange(values.shape[1])] = _odd_cell(rng)
        else:
            values = values.astype(float)
            values[0, rng.randrange(values.shape[1])] = rng.choice(
                (-1, 0, 1.5, np.nan, np.inf, 1e300)
            )
        out = io.BytesIO()
        try:
            savemat(out, {name: values}, do_compression=rng.random() < 0.3)
        except Exception:  # not every odd value can be written
            return changed_bytes(rng, valid)
        return out.getvalue()

    def _bomb(self, name: str) -> bytes:
        if not AnnotationMat.bomb:
            out = io.BytesIO()
            savemat(out, {name: np.zeros((1, 5 * 10**8), np.uint8)}, do_compression=True)
            AnnotationMat.bomb = out.getvalue()
        return AnnotationMat.bomb


def _odd_cell(rng: Random) -> Any:
    return rng.choice(
        (
            np.nan,
            np.inf,
            -1,
            0,
            1.5,
            10**9,
            "",
            "name",
            "../x 2001",
            np.zeros((0, 0)),
            np.zeros((3, 3)),
            np.array([[1, 2]]),
            {"a": 1},
            "a\0b 2000",
            "x" * 3000,
        )
    )


class _OwnList:
    """List of a user's own images in a file."""

    suffix: str
    rows: ClassVar = [
        {"path": f"{name}/{number}.png", "label": name, "split": part}
        for name in ("cat", "golden_retriever", "tree")
        for number, part in enumerate(("train", "train", "train", "val", "test", "test"))
    ]

    def __init__(self, folder: Path) -> None:
        own_images(folder)
        self.folder = folder / "own"

    def write(self, rng: Random | None, target: Path) -> None:
        linked_tree(self.folder, target / "own")
        path = target / "own" / f"list{self.suffix}"
        valid = self.as_text(self.rows).encode()
        if rng is None:
            path.write_bytes(valid)
            return
        write_hostile(rng, path, valid, lambda: self.change(rng, valid), target.parent / CANARY)

    def as_text(self, rows: list[dict[str, str]]) -> str:
        raise NotImplementedError

    def change(self, rng: Random, valid: bytes) -> bytes:
        raise NotImplementedError

    def read(self, target: Path) -> None:
        folder = ["DATASET.IMAGEFOLDER.FOLDER", "own"]
        build("imagefolder", target, *folder, "DATASET.IMAGEFOLDER.LIST", f"list{self.suffix}")


class CsvList(_OwnList):
    """List of images in CSV."""

    suffix = ".csv"

    def as_text(self, rows: list[dict[str, str]]) -> str:
        lines = [",".join(row.values()) for row in rows]
        return "\n".join(["path,label,split", *lines, ""])

    def change(self, rng: Random, valid: bytes) -> bytes:
        lines = [line.split(",") for line in valid.decode().split("\n")]
        for _ in range(rng.choice((1, 1, 3))):
            fields = rng.choice([fields for fields in lines if fields] or [[""]])
            place = rng.randrange(len(fields))
            action = rng.randrange(5)
            if action < 2:
                text = odd_text(rng)
                quoted = '"' + text.replace('"', '""') + '"'
                fields[place] = rng.choice((text, quoted, f'"{text}'))
            elif action == 2:
                fields[place] = rng.choice(
                    ('"', "'", '""', "../../beside.txt", "/etc/passwd", "y" * 200_000)
                )
            elif action == 3:
                del fields[place:]
            else:
                fields.insert(place, rng.choice(fields) if fields else "")
        text = rng.choice(("\n", "\r\n", "\r")).join(",".join(fields) for fields in lines)
        return text.encode("utf-8", "surrogatepass")


class JsonlList(_OwnList):
    """List of images in JSON lines."""

    suffix = ".jsonl"

    def as_text(self, rows: list[dict[str, str]]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    def change(self, rng: Random, valid: bytes) -> bytes:
        rows = changed_tree(rng, self.rows)
        return b"\n".join(as_json(rng, row) for row in (rows if isinstance(rows, list) else [rows]))


class ClassNameFile:
    """File that names the classes of a user's own images."""

    names: ClassVar = {"cat": "cat", "golden_retriever": "golden retriever", "tree": "oak tree"}

    def __init__(self, folder: Path) -> None:
        own_images(folder)
        self.folder = folder / "own"

    def write(self, rng: Random | None, target: Path) -> None:
        linked_tree(self.folder, target / "own")
        if rng is None or rng.random() < 0.5:
            path, valid = target / "own/names.json", json.dumps(self.names).encode()
        else:
            path = target / "own/names.txt"
            valid = "".join(f"{key}\t{name}\n" for key, name in self.names.items()).encode()
        if rng is None:
            path.write_bytes(valid)
            return

        def change() -> bytes:
            if path.suffix == ".json":
                tree = rng.choice((self.names, list(self.names.values())))
                return as_json(rng, changed_tree(rng, tree))
            text = rng.choice((valid, valid.replace(b"\t", b" ")))
            return changed_lines(rng, text)

        write_hostile(rng, path, valid, change, target.parent / CANARY)

    def read(self, target: Path) -> None:
        found = [name for name in os.listdir(target / "own") if name.startswith("names.")]
        name = found[0] if found else "names.json"
        folder = ["DATASET.IMAGEFOLDER.FOLDER", "own"]
        build("imagefolder", target, *folder, "DATASET.IMAGEFOLDER.CLASSNAMES", name)


class OddNames:
    """Folders and files of a user's own images under odd names."""

    def __init__(self, folder: Path) -> None:
        self.image = own_images(folder) / "cat/0.png"

    def write(self, rng: Random | None, target: Path) -> None:
        for number in range(3):
            folder, files = f"class {number}", [f"{i}.png" for i in range(6)]
            if rng is not None and rng.random() < 0.6:
                folder = _file_name(rng) or folder
            if rng is not None and rng.random() < 0.6:
                files[0] = f"{_file_name(rng)[:120]}.png"
            place = os.fsencode(target / "own") + b"/" + os.fsencode(folder)
            os.makedirs(place, exist_ok=True)
            for name in files:
                path = place + b"/" + os.fsencode(name)
                if os.path.lexists(path):
                    continue
                if rng is not None and rng.random() < 0.02:
                    rng.choice((lambda p: os.symlink(p, p), os.mkfifo, os.mkdir))(path)
                else:
                    os.link(self.image, path)

    def read(self, target: Path) -> None:
        build("imagefolder", target, "DATASET.IMAGEFOLDER.FOLDER", "own")


def _file_name(rng: Random) -> str:
    """Return a text that can be a file's name, perhaps of bytes that are no UTF-8."""
    if rng.random() < 0.2:
        return os.fsdecode(bytes(rng.choice(range(128, 256)) for _ in range(5)))
    text = odd_text(rng).replace("/", ":").replace("\0", "")
    try:
        data = os.fsencode(text)[:200]
    except UnicodeEncodeError:
        return ""
    name = data.decode("utf-8", "ignore")
    return "" if name in (".", "..") else name
