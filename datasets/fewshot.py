"""Few-shot image classification: split files, shots and base/new classes, once for all data sets.

A data set is a subclass of ``FewShotDataset`` that names its folders and reads its raw annotation.
Lists are read for all classes, then sampled, and only then reduced to base or new classes: base,
new and all runs of one (shots, seed) pair therefore see the same images.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence

from dassl.config import CfgNode
from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import check_availability

from . import splits
from .annotations import ClassNames, Line, as_clip_reads, read_lines
from .items import GUIDE, check_images, make_item
from .shots import VAL_SHOTS, sample_shots
from .whereabouts import explain_missing

SUBSAMPLE_CHOICES = ("all", "base", "new")
#: (train, val, test); val None where the test list serves as validation
Lists = tuple[list[Datum], list[Datum] | None, list[Datum]]


def extend_cfg(cfg: CfgNode) -> None:
    """Add the config key that this file reads and that is not Dassl's."""
    #: classes that are taken: all, base (the first half, the larger when odd) or new
    #: (the rest)
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    #: validation images of a few-shot run, one of VAL_SHOTS: at most 4 per class (few), as many as
    #: there are training images (same), or the whole validation split (all)
    cfg.DATASET.VAL_SHOTS = "few"
    #: draw with replacement from classes with fewer images than shots, which else keep all of them
    cfg.DATASET.REFILL = False


class FewShotDataset(DatasetBase):
    """Image classification data set with shots per class and base/new classes.

    A subclass sets the attributes below and implements ``read_annotations``, and ``prepare`` if it
    makes its own files.

    Args:
        cfg: configuration with DATASET.ROOT, DATASET.NUM_SHOTS (images per class, below 1 for
            all), DATASET.SUBSAMPLE_CLASSES (all, base or new) and SEED (names the shots' cache).

    Raises:
        FileNotFoundError: a folder, an annotation file or a listed image is missing.
        ValueError: an option is out of range or a list cannot be used.
    """

    #: folder below DATASET.ROOT; absolute in an instance
    dataset_dir = ""
    #: folder in it that the paths of the split file start from; absolute in an instance
    image_dir = "images"
    #: file of the published split in ``dataset_dir``; None where there is none
    split_file: str | None = None
    #: what ``dataset_dir`` is expected to hold without that file, for messages
    layout = ""
    #: where the layout is described, for messages
    guide = GUIDE
    #: zero-shot text with one ``{}`` for the class name; None for "a photo of a {}."
    template: str | None = None
    #: whether zero-shot ensembles have that text as well as those selected on ImageNet
    template_in_ensemble = True

    def __init__(self, cfg):
        subsample = cfg.DATASET.SUBSAMPLE_CLASSES
        check_availability(subsample, SUBSAMPLE_CHOICES, "DATASET.SUBSAMPLE_CLASSES")
        self.val_shots, self.refill = cfg.DATASET.VAL_SHOTS, cfg.DATASET.REFILL
        check_availability(self.val_shots, VAL_SHOTS, "DATASET.VAL_SHOTS")
        self.locate(cfg.DATASET.ROOT)
        train, val, test = self.read_data()
        self.check_lists(train, test, val)
        self.note_same_names(train)
        if cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self.sample_shots(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        named = {"train_x": train, "val": val, "test": test}
        lists = {name: items for name, items in named.items() if items is not None}
        selected = self.subsample_classes(*lists.values(), subsample=subsample)
        parts = dict(zip(lists, selected, strict=True))
        if val is None and "test" in parts:
            parts["val"] = parts["test"]
        super().__init__(**parts)

    # --- what a data set supplies -------------------------------------------------------------

    def prepare(self) -> None:
        """Make the files of a data set that needs no download, before folders are checked."""

    def read_annotations(self) -> Lists:
        """Read the raw annotation into (train, val, test).

        With val None the test list serves as validation, and no validation shots are drawn.
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
                found = explain_missing(self.dataset_dir, wanted, self.layout)
                raise FileNotFoundError(
                    f"{self.name}: folder {folder} not found{found and f' ({found})'}. Put the "
                    f"data set there ({self.guide}), or point the data root elsewhere (--root, "
                    f"DATASET.ROOT, or DATA for the scripts; now {root!r})"
                )

    @property
    def name(self) -> str:
        return type(self).__name__

    def annotation_file(self, *parts: str) -> str:
        """Return the absolute path of a file below the data set folder.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = os.path.join(self.dataset_dir, *parts)
        if not os.path.isfile(path):
            wanted = os.path.relpath(path, self.dataset_dir)
            found = explain_missing(self.dataset_dir, wanted, self.layout)
            raise FileNotFoundError(
                f"{self.name}: annotation file {path} not found ({found}; {self.guide})"
            )
        return path

    def annotation_lines(self, *parts: str) -> list[Line]:
        """Read the lines of an annotation file without empty ones and ``#`` comments.

        Raises:
            FileNotFoundError: the file is absent.
            ValueError: it is empty, a web page, or not UTF-8.
        """
        return read_lines(self.annotation_file(*parts))

    def check_images(self, items: Iterable[Datum], annotation: str) -> None:
        """Check that the images named by an annotation file exist.

        Args:
            items: the images.
            annotation: file that names them, for the message.

        Raises:
            FileNotFoundError: one does not exist.
        """
        check_images(
            items, annotation, guide=self.guide, dataset_dir=self.dataset_dir, layout=self.layout
        )

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
            anew = self.generate_if_changed(path)
            if anew is None:
                return present
            train, val, test = anew
            earlier: str | None = f"{os.path.splitext(path)[0]}.earlier.json"
            print(
                f"{self.name}: the images or annotations that {path} was generated from have "
                f"changed, so it is generated anew; the former one is kept as {earlier}"
            )
        else:
            print(
                f"{self.name}: {path} not found, so a split is generated; "
                "results are comparable with published ones only on the published split"
            )
            train, val, test = self.read_annotations()
            earlier = None
        self.check_lists(train, test)
        if val is None:  # which a split file cannot say
            return train, val, test
        try:
            if earlier:
                shutil.copyfile(path, earlier)
            self.save_split(train, val, test, path, self.image_dir)
            splits.write_origin(path, self.split_fingerprint(train, val, test))
        except OSError as error:
            print(f"Split not saved ({error}); it is generated anew at each start")
        return train, val, test

    def generate_if_changed(self, path: str) -> Lists | None:
        """Generate a split anew if it was generated here from other files than are there now.

        Args:
            path: the split file.

        Returns:
            (train, val, test), or None for a split that was not generated here, was edited since,
            or whose sources are as they were or were removed.

        Raises:
            ValueError: no split can be generated any more.
        """
        sources = splits.read_origin(path)
        if sources is None:
            return None
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # nothing may come of it
                lists = self.read_annotations()
        except FileNotFoundError:
            return None
        return None if self.split_fingerprint(*lists) == sources else lists

    def check_lists(
        self,
        train: Sequence[Datum],
        test: Sequence[Datum] | None,
        val: Sequence[Datum] | None = None,
    ) -> None:
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
        pairs |= {(item.label, item.classname) for item in (*(test or ()), *(val or ()))}
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
        """Print which classes have the same name; official lists have such classes, too."""
        groups = defaultdict(list)
        for label, name in sorted({(item.label, item.classname) for item in train}):
            groups[as_clip_reads(name)].append(label)
        same = [(name, found) for name, found in groups.items() if len(found) > 1]
        if same:
            name, found = same[0]
            others = f", and {len(same) - 1} more names are shared" if len(same) > 1 else ""
            print(
                f"Note: {self.name} gives the labels {' and '.join(map(str, found))} the same "
                f"class name {name!r}{others}: a text cannot tell them apart"
            )

    # names of upstream, for subclasses
    read_split = staticmethod(splits.read_split)
    save_split = staticmethod(splits.save_split)
    read_and_split_data = staticmethod(splits.read_and_split_data)
    split_by_class = staticmethod(splits.split_by_class)
    split_trainval = staticmethod(splits.split_trainval)

    def split_fingerprint(self, *lists: Sequence[Datum] | None) -> str:
        """Return the SHA-256 of lists of images: order, relative paths, labels, class names."""
        return splits.fingerprint(self.dataset_dir, *lists)

    # --- shots --------------------------------------------------------------------------------

    def sample_shots(
        self, train: list[Datum], val: list[Datum] | None, shots: int, seed: int
    ) -> tuple[list[Datum], list[Datum] | None]:
        """Draw the images of a few-shot run, see :func:`datasets.shots.sample_shots`."""
        return sample_shots(self, train, val, shots, seed)

    # --- base and new classes -----------------------------------------------------------------

    @staticmethod
    def subsample_classes(*args: list[Datum], subsample: str = "all") -> Sequence[list[Datum]]:
        """Keep the first half (base, the larger when odd) or the rest (new) of the classes.

        Args:
            args: lists of one data set; the classes are those of the first list.
            subsample: all (lists are returned as they are), base or new.

        Returns:
            the lists in the order given, labels renumbered from 0.

        Raises:
            ValueError: another value of ``subsample``, or no class is left.
        """
        check_availability(subsample, SUBSAMPLE_CHOICES, "DATASET.SUBSAMPLE_CLASSES")
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
