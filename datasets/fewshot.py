"""Few-shot image classification: split files, shots and base/new classes, once for all data sets.

A data set is a subclass of `FewShotDataset` that names its folders and reads its raw annotation.
Lists are read for all classes, then sampled, and only then reduced to base or new classes: base,
new and all runs of one (shots, seed) pair therefore see the same images.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from support.files import sha256_of, write_json

from .annotations import ClassNames, Line, as_read, is_not, read_json, read_lines, with_slashes
from .items import (
    GUIDE,
    PARTS,
    check_images,
    class_folders,
    is_row,
    list_images,
    make_item,
    to_rows,
)
from .pickles import load_pickled_lists
from .shots import count_labels, match, note_short, skip_draws
from .whereabouts import explain

SUBSAMPLE_CHOICES = ("all", "base", "new")
MAX_VAL_SHOTS = 4
# A split that has to be generated is the same for every run seed, and leaves the run's stream alone
SPLIT_SEED = 0
SPLIT_FILE = "a split file with lists train, val and test of [path, label, class name]"


class FewShotDataset(DatasetBase):
    """Image classification data set with shots per class and base/new classes.

    Class attributes of a subclass (paths are relative; instances hold the absolute ones):
    `dataset_dir`, the folder below DATASET.ROOT; `image_dir`, the folder in it that the paths of
    the split file start from; `split_file`, the published split, or None where there is none;
    `layout`, what the folder is expected to hold without that file, for messages. `guide` tells
    where the layout is described. A subclass implements `read_annotations`, and
    `prepare` if it makes its own files.

    Args:
        cfg: configuration with DATASET.ROOT, DATASET.NUM_SHOTS (images per class, below 1 for
            all), DATASET.SUBSAMPLE_CLASSES (all, base or new) and SEED (names the shots' cache).

    Raises:
        FileNotFoundError: a folder, an annotation file or a listed image is missing.
        ValueError: an option is out of range or a list cannot be used.
    """

    dataset_dir = ""
    image_dir = "images"
    split_file: str | None = None
    layout = ""
    guide = GUIDE

    def __init__(self, cfg):
        subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        _check_subsample(subsample)
        self.locate(cfg.DATASET.ROOT)
        train, val, test = self.read_data()
        self.check_lists(train, test)
        self.note_same_names(train)
        if cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self.sample_shots(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        parts = {"train_x": train, "val": val, "test": test}
        parts = {name: items for name, items in parts.items() if items is not None}
        halves = self.subsample_classes(*parts.values(), subsample=subsample)
        parts = dict(zip(parts, halves, strict=True))
        if val is None:
            parts["val"] = parts.get("test")
        super().__init__(**parts)

    # --- what a data set supplies -------------------------------------------------------------

    def prepare(self) -> None:
        """Make the files of a data set that needs no download, before folders are checked."""

    def read_annotations(self) -> tuple[list[Datum], list[Datum] | None, list[Datum]]:
        """Read the raw annotation into (train, val, test); val None lets the test list serve.

        With val None no validation shots are drawn.
        """
        raise NotImplementedError

    # --- folders and files --------------------------------------------------------------------

    def locate(self, root: str) -> None:
        """Set the absolute folders below the data root and check that they exist."""
        self.data_root = os.path.abspath(os.path.expanduser(root))
        self.dataset_dir = os.path.normpath(os.path.join(self.data_root, self.dataset_dir))
        self.image_dir = os.path.normpath(os.path.join(self.dataset_dir, self.image_dir))
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        self.prepare()
        for folder in (self.dataset_dir, self.image_dir):
            if not os.path.isdir(folder):
                wanted = os.path.relpath(folder, self.dataset_dir)
                found = explain(self.dataset_dir, wanted, self.layout)
                raise FileNotFoundError(
                    f"{self.name}: folder {folder} not found{found and f' ({found})'}. Put the "
                    f"data set there ({self.guide}), or point the data root elsewhere (--root, "
                    f"DATASET.ROOT, or DATA for the scripts; now {root!r})"
                )

    @property
    def name(self) -> str:
        return type(self).__name__

    def annotation_file(self, *parts: str) -> str:
        """Absolute path of a file below the data set folder; FileNotFoundError if it is absent."""
        path = os.path.join(self.dataset_dir, *parts)
        if not os.path.isfile(path):
            wanted = os.path.relpath(path, self.dataset_dir)
            found = explain(self.dataset_dir, wanted, self.layout)
            raise FileNotFoundError(
                f"{self.name}: annotation file {path} not found ({found}; {self.guide})"
            )
        return path

    def annotation_lines(self, *parts: str) -> list[Line]:
        """Stripped lines of an annotation file, without empty ones and `#` comments.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: it is empty, a web page, or not UTF-8.
        """
        return read_lines(self.annotation_file(*parts))

    def check_images(self, items: Iterable[Datum], annotation: str) -> None:
        """Raise FileNotFoundError if images named by an annotation file do not exist.

        Args:
            items: the images.
            annotation: file that names them, for the message.
        """
        check_images(items, annotation, self.guide, self.dataset_dir, self.layout)

    # --- the lists of all classes -------------------------------------------------------------

    def read_data(self) -> tuple[list[Datum], list[Datum] | None, list[Datum] | None]:
        """Read (train, val, test) from the split file, which is made first if it is missing.

        A split that was generated here is made anew when what it was generated from has changed.
        A data set may override it with test None: there is nothing to test on.
        """
        if self.split_file is None:
            return self.read_annotations()
        path = os.path.join(self.dataset_dir, self.split_file)
        if os.path.isfile(path):
            present = self.read_split(path, self.image_dir)
            lists = self.generate_if_changed(path)
            if lists is None:
                return present
            earlier = f"{os.path.splitext(path)[0]}.earlier.json"
            print(
                f"{self.name}: the images or annotations that {path} was generated from have "
                f"changed, so it is generated anew; the former one is kept as {earlier}"
            )
        else:
            print(
                f"{self.name}: {path} not found, so a split is generated; "
                "results are comparable with published ones only on the published split"
            )
            lists = self.read_annotations()
            earlier = None
        self.check_lists(lists[0], lists[2])
        try:
            if earlier:
                shutil.copyfile(path, earlier)
            self.save_split(*lists, path, self.image_dir)
            origin = {"split_sha256": sha256_of(path), "sources": self.split_fingerprint(*lists)}
            write_json(origin, self._origin_file)
        except OSError as error:
            print(f"Split not saved ({error}); it is generated anew at each start")
        return lists

    @property
    def _origin_file(self) -> str:
        """What a split that was generated here was generated from, beside the split file."""
        return os.path.join(self.dataset_dir, f"{os.path.splitext(self.split_file)[0]}.origin.json")

    def generate_if_changed(self, path: str) -> tuple[list[Datum], ...] | None:
        """The lists that take the place of a split file that does not fit its sources any more.

        Args:
            path: the split file.

        Returns:
            None for a split that was not generated here or was edited since, or whose sources are
            as they were or were removed.

        Raises:
            ValueError: no split can be generated any more.
        """
        try:
            origin = read_json(self._origin_file, "a note on a split file")
            sources, split = origin["sources"], origin["split_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if split != sha256_of(path):
            return None
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # nothing may come of it
                lists = self.read_annotations()
        except FileNotFoundError:
            return None
        return None if self.split_fingerprint(*lists) == sources else lists

    def check_lists(self, train: Sequence[Datum], test: Sequence[Datum] | None) -> None:
        """Check that every class has training images and one name, and labels count from 0.

        Raises:
            ValueError: one has not.
        """
        if not train or (test is not None and not test):
            raise ValueError(
                f"{self.name}: the {'test' if train else 'training'} list is empty, so there are "
                f"no classes to learn; check {self.dataset_dir} ({self.guide})"
            )
        pairs = {(item.label, item.classname) for item in train}
        labels = {label for label, _ in pairs}
        pairs |= {(item.label, item.classname) for item in test or ()}
        names = ClassNames()
        for label, name in sorted(pairs):
            names.add(label, name, f"{self.name} in {self.dataset_dir}, label {label}")
        every = set(names.names)
        if min(every) < 0:
            raise ValueError(f"{self.name}: label {min(every)} in {self.dataset_dir} is below 0")
        if max(every) >= len(labels):
            first = next(label for label in range(len(labels) + 1) if label not in labels)
            name = f" {names.names[first]!r}" if first in every else ""
            raise ValueError(
                f"{self.name}: no training image for {max(every) + 1 - len(labels)} of "
                f"{max(every) + 1} classes (first label: {first}{name}); check {self.dataset_dir}"
            )

    def note_same_names(self, train: Sequence[Datum]) -> None:
        """Print which classes have the same name: a list may be official all the same."""
        groups = defaultdict(list)
        for label, name in sorted({(item.label, item.classname) for item in train}):
            groups[as_read(name)].append(label)
        same = [(name, found) for name, found in groups.items() if len(found) > 1]
        if same:
            name, found = same[0]
            others = f", and {len(same) - 1} more names are shared" if len(same) > 1 else ""
            print(
                f"Note: {self.name} gives the labels {' and '.join(map(str, found))} the same "
                f"class name {name!r}{others}: a text cannot tell them apart"
            )

    @staticmethod
    def read_split(filepath: str, path_prefix: str) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Read a split file `{"train": [[path, label, class name], ...], "val": .., "test": ..}`.

        Args:
            filepath: the JSON file.
            path_prefix: folder its image paths are relative to. Where only that finds images, the
                backslashes of a list written on Windows are read as slashes.

        Raises:
            ValueError: the file is not such a split, or gives a class no name, or two names.
            FileNotFoundError: it lists images that do not exist.
        """
        print(f"Reading split from {filepath}")
        split = read_json(filepath, SPLIT_FILE)
        lists = {}
        for part in PARTS:
            lists[part] = split.get(part) if isinstance(split, dict) else None
            if not isinstance(lists[part], list):
                raise is_not(filepath, SPLIT_FILE, f"it has no list {part!r}")
        names = ClassNames()
        for part, rows in lists.items():
            for number, row in enumerate(rows, start=1):
                where = f"{filepath}, {part} image {number}"
                if not is_row(row):
                    raise is_not(filepath, SPLIT_FILE, f"{part} image {number} reads {row!r:.200}")
                names.add(row[1], str(row[2]), where)
        paths = with_slashes([row[0] for rows in lists.values() for row in rows], [path_prefix])
        rest = iter(paths)
        items = tuple(
            [
                make_item(os.path.join(path_prefix, next(rest)), label, str(name))
                for _, label, name in rows
            ]
            for rows in lists.values()
        )
        check_images((item for part in items for item in part), filepath)
        return items

    @staticmethod
    def save_split(
        train: Sequence[Datum],
        val: Sequence[Datum],
        test: Sequence[Datum],
        filepath: str,
        path_prefix: str,
    ) -> None:
        """Write a split file with paths relative to `path_prefix`."""
        lists = {"train": train, "val": val, "test": test}
        split = {part: to_rows(items, path_prefix) for part, items in lists.items()}
        write_json(split, filepath, indent=4)
        print(f"Saved split to {filepath}")

    @staticmethod
    def read_and_split_data(
        image_dir: str,
        p_trn: float = 0.5,
        p_val: float = 0.2,
        ignored: Iterable[str] = (),
        new_cnames: Mapping[str, str] | None = None,
    ) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Split a tree with one folder per class; labels follow the sorted folder names.

        Args:
            image_dir: folder that holds the class folders.
            p_trn, p_val: shares of each class (0 to 1) for training and validation.
            ignored: folder names that are no classes.
            new_cnames: class names of folders that are not named as their class.
        """
        print(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and the rest test")
        ignored = set(ignored)
        folders = [name for name in class_folders(image_dir) if name not in ignored]
        items = []
        for label, folder in enumerate(folders):
            classname = (new_cnames or {}).get(folder, folder)
            items += list_images(os.path.join(image_dir, folder), label, classname)
        return FewShotDataset.split_by_class(items, p_trn, p_val)

    @staticmethod
    def split_by_class(
        items: Iterable[Datum], p_trn: float = 0.5, p_val: float = 0.2
    ) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Shuffle each class and cut it into train, val and the rest, test.

        Raises:
            ValueError: a class has too few images to be in train and in test.
        """
        rng = random.Random(SPLIT_SEED)
        train, val, test = [], [], []
        for _, members in sorted(_group_by_label(items).items()):
            rng.shuffle(members)
            n_train, n_val = round(len(members) * p_trn), round(len(members) * p_val)
            if n_train < 1 or n_train + n_val >= len(members):
                raise ValueError(
                    f"Class {members[0].classname!r} has {len(members)} images, too few to split "
                    f"into train, val and test (in {os.path.dirname(members[0].impath)})"
                )
            train += members[:n_train]
            val += members[n_train : n_train + n_val]
            test += members[n_train + n_val :]
        return train, val, test

    @staticmethod
    def split_trainval(
        trainval: Iterable[Datum], p_val: float = 0.2
    ) -> tuple[list[Datum], list[Datum]]:
        """Take the share `p_val` of each class (rounded) out of an official training list."""
        print(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
        rng = random.Random(SPLIT_SEED)
        train, val = [], []
        for _, members in sorted(_group_by_label(trainval).items()):
            rng.shuffle(members)
            n_val = round(len(members) * p_val)
            val += members[:n_val]
            train += members[n_val:]
        return train, val

    # --- shots --------------------------------------------------------------------------------

    def sample_shots(
        self, train: list[Datum], val: list[Datum] | None, shots: int, seed: int
    ) -> tuple[list[Datum], list[Datum] | None]:
        """Draw `shots` training and at most 4 validation images per class, once per (shots, seed).

        The draw uses Python's global generator, which the caller has seeded, and is kept in
        `split_fewshot/shot_<shots>-seed_<seed>.json`. The generator is left in the same state
        whether the images were drawn or read. Classes with fewer images keep all of them, which a
        note says.

        Args:
            train, val: lists of all classes; val None if the test list serves as validation.
            shots: images per class, 1 or more.
            seed: run seed, part of the cache's name only.
        """
        counts = count_labels(train)
        note_short(counts, shots)
        key = {
            "dataset": self.name,
            "shots": shots,
            "seed": seed,
            "num_classes": len(counts),
            "split_sha256": self.split_fingerprint(train, val),
        }
        path = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}.json")
        chosen = self._load_shots(path, key, train, val)
        if chosen is not None:
            skip_draws(counts, shots)
            if val is not None:
                skip_draws(count_labels(val), min(shots, MAX_VAL_SHOTS))
            return chosen
        train = self.generate_fewshot_dataset(train, num_shots=shots)
        if val is not None:
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, MAX_VAL_SHOTS))
        self._save_shots(path, key, train, val)
        return train, val

    def split_fingerprint(self, *lists: Sequence[Datum] | None) -> str:
        """SHA-256 of lists of images (order, relative paths, labels, class names)."""
        digest = hashlib.sha256()
        prefix = os.path.join(self.dataset_dir, "")
        for items in (part or () for part in lists):
            lines = "".join([f"\n{i.impath}\t{i.label}\t{i.classname}" for i in items])
            lines = lines.replace("\n" + prefix, "\n").replace(os.sep, "/")
            # file names need not be UTF-8
            digest.update(lines.encode(errors="surrogateescape"))
            digest.update(b"\0")
        return digest.hexdigest()

    def _load_shots(
        self, path: str, key: dict, train: list[Datum], val: list[Datum] | None
    ) -> tuple[list[Datum], list[Datum] | None] | None:
        """Shots from our cache, else from an upstream pickle; None if they have to be drawn."""
        pickled = os.path.splitext(path)[0] + ".pkl"
        try:
            if os.path.isfile(path):
                chosen = self._read_cache(path, key, train, val)
            elif os.path.isfile(pickled):
                chosen = self._read_pickled_cache(pickled, train, val)
                self._save_shots(path, key, *chosen)
            else:
                return None
        except (OSError, ValueError) as error:
            print(f"Few-shot cache not used, samples are drawn again: {error}")
            return None
        return chosen

    def _read_cache(
        self, path: str, key: dict, train: list[Datum], val: list[Datum] | None
    ) -> tuple[list[Datum], list[Datum] | None]:
        print(f"Loading preprocessed few-shot data from {path}")
        cache = read_json(path, "a few-shot cache")
        if not isinstance(cache, dict) or {name: cache.get(name) for name in key} != key:
            raise ValueError(f"{path} was drawn from another split than the present one")
        return self._match_drawn(cache, train, val, path)

    def _read_pickled_cache(
        self, path: str, train: list[Datum], val: list[Datum] | None
    ) -> tuple[list[Datum], list[Datum] | None]:
        """Find the images of an upstream cache (absolute paths) in the present split."""
        print(f"Loading preprocessed few-shot data from {path}")
        return self._match_drawn(load_pickled_lists(path), train, val, path)

    def _match_drawn(
        self, cache: Mapping[str, Any], train: list[Datum], val: list[Datum] | None, path: str
    ) -> tuple[list[Datum], list[Datum] | None]:
        """The members of the present lists that a cache names; every class must be there."""
        few_train = match(cache, "train", train, self.dataset_dir, path)
        if {item.label for item in few_train} != {item.label for item in train}:
            raise ValueError(f"{path} does not hold every class of the present split")
        few_val = None if val is None else match(cache, "val", val, self.dataset_dir, path)
        if val and not few_val:
            raise ValueError(f"{path} holds no validation image")
        return few_train, few_val

    def _save_shots(
        self, path: str, key: dict, train: Sequence[Datum], val: Sequence[Datum] | None
    ) -> None:
        rows = {
            "train": to_rows(train, self.dataset_dir),
            "val": None if val is None else to_rows(val, self.dataset_dir),
        }
        try:
            os.makedirs(self.split_fewshot_dir, exist_ok=True)
            write_json({**key, **rows}, path)
        except OSError as error:
            print(f"Few-shot data not saved ({error}); they are drawn anew at each start")
        else:
            print(f"Saving preprocessed few-shot data to {path}")

    # --- base and new classes -----------------------------------------------------------------

    @staticmethod
    def subsample_classes(*args: Sequence[Datum], subsample: str = "all") -> Sequence[list[Datum]]:
        """Keep the first half (base, the larger when odd) or the rest (new) of the classes.

        Args:
            args: lists of one data set; the classes are those of the first list.
            subsample: all (lists are returned as they are), base or new.

        Returns:
            the lists in the order given, labels renumbered from 0.

        Raises:
            ValueError: another value of `subsample`, or no class is left.
        """
        _check_subsample(subsample)
        if subsample == "all":
            return args
        labels = sorted({item.label for item in args[0]})
        middle = (len(labels) + 1) // 2
        print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
        selected = labels[:middle] if subsample == "base" else labels[middle:]
        if not selected:
            raise ValueError(
                f"DATASET.SUBSAMPLE_CLASSES {subsample!r} leaves no class of {len(labels)}"
            )
        new_label = {label: index for index, label in enumerate(selected)}
        return [
            [
                make_item(item.impath, new_label[item.label], item.classname)
                for item in items
                if item.label in new_label
            ]
            for items in args
        ]


def _group_by_label(items: Iterable[Datum]) -> dict[int, list[Datum]]:
    groups = defaultdict(list)
    for item in items:
        groups[item.label].append(item)
    return groups


def _check_subsample(subsample: str) -> None:
    if subsample not in SUBSAMPLE_CHOICES:
        close = difflib.get_close_matches(str(subsample), SUBSAMPLE_CHOICES, n=1)
        raise ValueError(
            f"DATASET.SUBSAMPLE_CLASSES {subsample!r} is not one of {', '.join(SUBSAMPLE_CHOICES)}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
