"""ImageNet (Deng et al., 2009): 1000 classes, 1.28 million training images; its test variants."""

from __future__ import annotations

import hashlib
import itertools
import json
import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

from .fewshot import (
    FewShotDataset,
    check_images,
    list_folders,
    list_images,
    load_pickled_lists,
    look_up,
    make_item,
    make_items,
    write_json_atomically,
)


class WnidDataset(FewShotDataset):
    """Folders named by WordNet ids, class names in `classnames.txt` (`<wnid> <class name>`)."""

    def read_classnames(self):
        """{wnid: class name} in the order of the file."""
        lines = self.annotation_lines("classnames.txt")
        return {wnid: name for wnid, _, name in (line.partition(" ") for line in lines)}

    def list_wnid_folders(self, folder, labels):
        """The images of all class folders of `folder`; `labels` maps wnid to label."""
        names = self.read_classnames()
        items = []
        for wnid in list_folders(folder):
            path = os.path.join(folder, wnid)
            label, name = look_up(labels, wnid, path), look_up(names, wnid, path)
            items += list_images(path, label, name)
        return items


@DATASET_REGISTRY.register()
class ImageNet(WnidDataset):
    """The official validation images serve as validation and test list.

    The full lists are kept in `preprocessed.json` (relative paths), as listing 1.28 million files
    takes minutes on a network drive. It is made anew when class folders or names have changed. An
    upstream `preprocessed.pkl` is taken over, since few-shot samples depend on its file order.
    """

    dataset_dir = "imagenet"

    def read_annotations(self):
        """The images of all class folders, listed anew."""
        train_dir, test_dir = self._image_folders()
        labels = {wnid: label for label, wnid in enumerate(list_folders(train_dir))}
        train = self.list_wnid_folders(train_dir, labels)
        return train, None, self.list_wnid_folders(test_dir, labels)

    def _image_folders(self):
        folders = [os.path.join(self.image_dir, part) for part in ("train", "val")]
        for folder in folders:
            if not os.path.isdir(folder):
                raise FileNotFoundError(
                    f"ImageNet: folder {folder} not found (see docs/datasets.md for the layout)"
                )
        return folders

    def read_data(self):
        train_dir, _ = self._image_folders()
        wnids = list_folders(train_dir)
        names = self.read_classnames()
        classes = [[wnid, look_up(names, wnid, train_dir)] for wnid in wnids]
        fingerprint = hashlib.sha256(json.dumps(classes).encode()).hexdigest()

        lists = self._read_preprocessed(fingerprint)
        if lists is None:
            lists = self._read_pickle(classes)
            if lists is None:
                train, _, test = self.read_annotations()
                lists = [train, test]
            self._save_preprocessed(fingerprint, lists)
        train, test = lists
        return train, None, test

    @property
    def _preprocessed(self):
        return os.path.join(self.dataset_dir, "preprocessed.json")

    def _read_preprocessed(self, fingerprint):
        if not os.path.isfile(self._preprocessed):
            return None
        try:
            with open(self._preprocessed, encoding="utf-8") as file:
                stored = json.load(file)
            if stored["classes_sha256"] != fingerprint:
                raise ValueError("class folders or names have changed")
            return [
                [
                    item
                    for folder, label, name, files in stored[part]
                    for item in make_items(os.path.join(self.image_dir, folder), files, label, name)
                ]
                for part in ("train", "test")
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{self._preprocessed} not used, folders are listed again: {error!r}")
            return None

    def _read_pickle(self, classes):
        """Take over upstream's lists in their order; absolute paths are cut to their last parts."""
        path = os.path.join(self.dataset_dir, "preprocessed.pkl")
        if not os.path.isfile(path):
            return None
        table = {wnid: (label, name) for label, (wnid, name) in enumerate(classes)}
        try:
            pickled = load_pickled_lists(path)
            lists = []
            for part, folder in (("train", "train"), ("test", "val")):
                items = []
                for impath, label, _ in pickled[part]:
                    wnid, file = impath.split("/")[-2:]
                    if table.get(wnid, (None,))[0] != label:
                        raise ValueError(f"{impath} has label {label}, not that of its folder here")
                    items.append(
                        make_item(os.path.join(self.image_dir, folder, wnid, file), *table[wnid])
                    )
                check_images(items, path)
                lists.append(items)
        except (OSError, ValueError, KeyError) as error:
            print(f"{path} not used, folders are listed again: {error!r}")
            return None
        return lists

    def _save_preprocessed(self, fingerprint, lists):
        stored = {"classes_sha256": fingerprint}
        for part, items in zip(("train", "test"), lists, strict=True):
            stored[part] = []
            for folder, members in itertools.groupby(items, lambda i: os.path.dirname(i.impath)):
                members = list(members)
                relative = os.path.relpath(folder, self.image_dir).replace(os.sep, "/")
                files = [os.path.basename(item.impath) for item in members]
                stored[part].append([relative, members[0].label, members[0].classname, files])
        try:
            write_json_atomically(stored, self._preprocessed)
        except OSError as error:
            print(f"{self._preprocessed} not saved ({error}); folders are listed at each start")


class ImageNetVariant(WnidDataset):
    """Test images for ImageNet's classes; shots and base/new classes do not apply.

    The list is also given as training list, which class names are taken from.
    """

    def __init__(self, cfg):
        self.locate(cfg.DATASET.ROOT)
        _, _, test = self.read_annotations()
        self.check_lists(test, test)
        DatasetBase.__init__(self, train_x=test, test=test)

    def read_annotations(self):
        test = self.read_test()
        return test, None, test

    def read_test(self):
        """The test images; labels follow the sorted class folders."""
        labels = {wnid: label for label, wnid in enumerate(list_folders(self.image_dir))}
        return self.list_wnid_folders(self.image_dir, labels)
