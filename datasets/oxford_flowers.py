"""Flowers102 (Nilsback and Zisserman, 2008): 102 British flowers."""

from __future__ import annotations

import json
import os

from scipy.io import loadmat

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset, check_images, look_up, make_item


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """Class names come from `cat_to_name.json`; image number i has the i-th label."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"

    def read_annotations(self):
        annotation = self.annotation_file("imagelabels.mat")
        with open(self.annotation_file("cat_to_name.json"), encoding="utf-8") as file:
            names = json.load(file)
        items = []
        for number, label in enumerate(loadmat(annotation)["labels"][0], start=1):
            path = os.path.join(self.image_dir, f"image_{number:05d}.jpg")
            items.append(make_item(path, int(label) - 1, look_up(names, str(label), annotation)))
        check_images(items, annotation)
        return self.split_by_class(items)
