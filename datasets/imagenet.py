"""ImageNet (Deng et al., 2009): 1000 classes, 1.28 million training images; its test variants."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections import defaultdict

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from support.files import write_json

from .annotations import check_name, read_json
from .fewshot import FewShotDataset
from .items import (
    list_class_folders,
    list_folders,
    list_image_names,
    list_images,
    look_up,
    make_item,
    make_items,
)
from .pickles import load_pickled_lists
from .whereabouts import explain_missing

CLASS_NAMES = "classnames.txt"
#: folder below ``image_dir`` by list
FOLDERS = {"train": "train", "test": "val"}
#: age from which a folder's time of change tells of every later change
SETTLED_AFTER_NS = 2 * 10**9


class WnidDataset(FewShotDataset):
    """Folders named by WordNet ids, class names in ``classnames.txt`` (``<wnid> <class name>``)."""

    def read_classnames(self):
        """Read ``{wnid: class name}``, in the order of the file.

        Raises:
            ValueError: a line has no name, or a wnid has two.
        """
        names: dict[str, str] = {}
        for line in self.annotation_lines(CLASS_NAMES):
            wnid, name = line.fields("<wnid> <class name>", maxsplit=1)
            if names.setdefault(wnid, name) != name:
                raise line.error(f"gives {wnid} a second name, {name!r} after {names[wnid]!r}")
            check_name(name, line.where)
        return names

    def name_of(self, wnid, names, folder):
        """Return the class name of a class folder in ``folder``."""
        if wnid not in names:
            file = os.path.join(self.dataset_dir, CLASS_NAMES)
            raise ValueError(
                f"{file} has no line for {wnid}, a folder in {folder}: add one, or remove the "
                "folder if it is no class"
            )
        return names[wnid]

    def list_wnid_folders(self, folder, labels):
        """List the images of all class folders of ``folder``; ``labels`` maps wnid to label."""
        names = self.read_classnames()
        items = []
        for wnid in list_folders(folder):
            path = os.path.join(folder, wnid)
            label, name = look_up(labels, wnid, path), self.name_of(wnid, names, folder)
            items += list_images(path, label, name)
        return items


@DATASET_REGISTRY.register()
class ImageNet(WnidDataset):
    """The official validation images serve as validation and test list.

    The full lists are kept in ``preprocessed.json`` (relative paths), as listing 1.28 million files
    takes minutes on a network drive. A class folder that has changed since is listed again; if
    folders, class names or images are others, the file is made anew. Upstream's
    ``preprocessed.pkl`` is taken over if it names exactly the images that are there, since few-shot
    samples depend on its file order.
    """

    dataset_dir = "imagenet"
    layout = "images/train/<wnid>/*, images/val/<wnid>/*, classnames.txt"
    template_in_ensemble = False  # the ensemble's seven were selected on ImageNet, by themselves

    def read_annotations(self):
        """List the images of all class folders."""
        labels = {wnid: label for label, (wnid, _) in enumerate(self._classes())}
        train, test = (self.list_wnid_folders(folder, labels) for folder in self._parts())
        return train, None, test

    def read_data(self):
        classes = self._classes()
        lists = self._read_preprocessed(classes)
        if lists is None:
            lists = self._read_pickle(classes)
        if lists is None:
            times = self._change_times(classes)
            train, _, test = self.read_annotations()
            self.check_lists(train, test)
            lists = [train, test]
            self._save_preprocessed(classes, times, lists)
        train, test = lists
        return train, None, test

    def _parts(self):
        return [os.path.join(self.image_dir, folder) for folder in FOLDERS.values()]

    def _classes(self):
        """List ``[wnid, class name]`` by label; both parts must have the same class folders."""
        found = []
        for folder in self._parts():
            if not os.path.isdir(folder):
                wanted = os.path.relpath(folder, self.dataset_dir)
                raise FileNotFoundError(
                    f"ImageNet: folder {folder} not found "
                    f"({explain_missing(self.dataset_dir, wanted, self.layout)}; {self.guide})"
                )
            found.append(list_class_folders(folder, "<wnid>"))
        train, val = self._parts()
        for folder, here, there in ((train, *found), (val, *found[::-1])):
            if absent := sorted(set(there) - set(here)):
                raise ValueError(
                    f"ImageNet: {folder} lacks {len(absent)} of {len(set(here + there))} class "
                    f"folders (first: {absent[0]}): unpack all of it, or remove them from the "
                    "other part"
                )
        names = self.read_classnames()
        return [[wnid, self.name_of(wnid, names, train)] for wnid in found[0]]

    # --- the lists of all images, kept ---------------------------------------------------------

    @property
    def _preprocessed(self):
        return os.path.join(self.dataset_dir, "preprocessed.json")

    def _class_folders(self, classes):
        """List the class folders of both parts, relative to ``image_dir``."""
        return [f"{part}/{wnid}" for part in FOLDERS.values() for wnid, _ in classes]

    def _change_times(self, classes):
        """Look up when each class folder changed last; None where that is too recent.

        A file that is added within the resolution of the clock would not change the time.
        """
        settled = time.time_ns() - SETTLED_AFTER_NS
        times = {}
        for folder in self._class_folders(classes):
            changed = os.stat(os.path.join(self.image_dir, folder)).st_mtime_ns
            times[folder] = changed if changed < settled else None
        return times

    def _check_files(self, lists, folders):
        """Raise ValueError unless the lists name exactly the images of these class folders."""
        if not folders:
            return
        names = defaultdict(list)
        for item in itertools.chain(*lists):
            folder, name = os.path.split(item.impath)
            names[folder].append(name)
        for folder in folders:
            path = os.path.normpath(os.path.join(self.image_dir, folder))
            present = list_image_names(path)
            if present != sorted(names[path]):
                raise ValueError(
                    f"it names {len(names[path]):,} images of {path}, which holds {len(present):,}"
                    f"{'' if len(present) != len(names[path]) else ' others'}"
                )

    def _read_preprocessed(self, classes):
        path = self._preprocessed
        if not os.path.isfile(path):
            return None
        try:
            stored = read_json(path, "a list of ImageNet's images")
            if stored["classes_sha256"] != _fingerprint(classes):
                raise ValueError("class folders or names have changed")
            expected = {label: name for label, (_, name) in enumerate(classes)}
            for _, label, name, _ in (row for part in FOLDERS for row in stored[part]):
                if type(label) is not int or expected.get(label) != name:
                    raise ValueError(f"it gives the label {label!r:.80} the name {name!r:.80}")
            lists = [
                [
                    item
                    for folder, label, name, files in stored[part]
                    for item in make_items(os.path.join(self.image_dir, folder), files, label, name)
                ]
                for part in FOLDERS
            ]
            known, times = stored.get("folder_times", {}), self._change_times(classes)
            changed = [f for f in times if times[f] is None or known.get(f) != times[f]]
            self._check_files(lists, changed)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"{path} not used, folders are listed again: {error!r}")
            return None
        print(f"Loading the lists of {_sizes(lists)} from {path}")
        if known != times:
            self._save_preprocessed(classes, times, lists)
        return lists

    def _read_pickle(self, classes):
        """Take over upstream's lists in their order; of absolute paths the last two parts count."""
        path = os.path.join(self.dataset_dir, "preprocessed.pkl")
        if not os.path.isfile(path):
            return None
        table = {wnid: (label, name) for label, (wnid, name) in enumerate(classes)}
        times = self._change_times(classes)
        try:
            pickled = load_pickled_lists(path)
            lists = []
            for part, folder in FOLDERS.items():
                items = []
                for impath, label, _ in pickled.get(part, ()):
                    wnid, file = impath.split("/")[-2:]
                    if table.get(wnid, (None,))[0] != label:
                        raise ValueError(f"{impath} has label {label}, not that of its folder here")
                    items.append(
                        make_item(os.path.join(self.image_dir, folder, wnid, file), *table[wnid])
                    )
                lists.append(items)
            self._check_files(lists, times)
        except (OSError, ValueError) as error:
            print(f"{path} not used, folders are listed again: {error!r}")
            return None
        print(f"Loading the lists of {_sizes(lists)} from {path}")
        self._save_preprocessed(classes, times, lists)
        return lists

    def _save_preprocessed(self, classes, times, lists):
        stored = {"classes_sha256": _fingerprint(classes), "folder_times": times}
        for part, items in zip(FOLDERS, lists, strict=True):
            stored[part] = []
            for folder, group in itertools.groupby(items, lambda i: os.path.dirname(i.impath)):
                members = list(group)
                relative = os.path.relpath(folder, self.image_dir).replace(os.sep, "/")
                files = [os.path.basename(item.impath) for item in members]
                stored[part].append([relative, members[0].label, members[0].classname, files])
        try:
            write_json(stored, self._preprocessed)
        except OSError as error:
            print(f"{self._preprocessed} not saved ({error}); folders are listed at each start")


def _fingerprint(classes):
    return hashlib.sha256(json.dumps(classes).encode()).hexdigest()


def _sizes(lists):
    return f"{len(lists[0]):,} training and {len(lists[1]):,} test images"


class ImageNetVariant(WnidDataset):
    """Test images for ImageNet's classes; shots and base/new classes do not apply.

    The list is also the training list, since class names are taken from that; training on it is
    refused.
    """

    tests_of = "ImageNet"

    def __init__(self, cfg):
        self.locate(cfg.DATASET.ROOT)
        _, _, test = self.read_annotations()
        self.check_lists(test, test)
        self.note_same_names(test)
        DatasetBase.__init__(self, train_x=test, test=test)

    def read_annotations(self):
        test = self.read_test()
        return test, None, test

    def rows_of_all(self):
        """Return where its classes stand among all of ``classnames.txt``, and how many those are.

        ImageNet's labels follow the sorted wnids, so a classifier of its classes has such rows.
        """
        everything = sorted(self.read_classnames())
        rows = {wnid: row for row, wnid in enumerate(everything)}
        folders = list_class_folders(self.image_dir, "<wnid>")
        return [rows[wnid] for wnid in folders], len(everything)

    def read_test(self):
        """List the test images; labels follow the sorted class folders."""
        folders = list_class_folders(self.image_dir, "<wnid>")
        labels = {wnid: label for label, wnid in enumerate(folders)}
        return self.list_wnid_folders(self.image_dir, labels)
