"""Flowers102 (Nilsback and Zisserman, 2008): 102 British flowers."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .annotations import FETCH_AGAIN, check_name, read_json, read_mat, whole_number, wrong_file
from .fewshot import FewShotDataset
from .items import look_up, make_item

NAMES = 'a file of class names {"<label from 1>": "<name>", ...}'


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """Class names come from ``cat_to_name.json``; image number i has the i-th label."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    layout = "jpg/image_00001.jpg ..., imagelabels.mat, cat_to_name.json"
    split_file = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."

    def read_annotations(self):
        annotation = self.annotation_file("imagelabels.mat")
        read = [whole_number(label) for label in read_mat(annotation, "labels").tolist()]
        labels = [label for label in read if label is not None]
        if len(labels) < len(read):
            raise ValueError(f"{annotation}: its labels are no whole numbers: {FETCH_AGAIN}")
        names = self._read_names()
        items = []
        for number, label in enumerate(labels, start=1):
            path = os.path.join(self.image_dir, f"image_{number:05d}.jpg")
            items.append(make_item(path, label - 1, look_up(names, str(label), annotation)))
        self.check_images(items, annotation)
        return self.split_by_class(items)

    def _read_names(self):
        path = self.annotation_file("cat_to_name.json")
        names = read_json(path, NAMES)
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise wrong_file(path, NAMES, "it holds something else")
        return {label: check_name(name, f"{path}, {label!r}") for label, name in names.items()}
