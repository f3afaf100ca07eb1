"""Stanford Cars (Krause et al., 2013): 196 makes, models and years."""

from __future__ import annotations

import os

from scipy.io import loadmat

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset, check_images, make_item


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """Class names are the official ones with the year moved to the front."""

    dataset_dir = "stanford_cars"
    image_dir = "."
    split_file = "split_zhou_StanfordCars.json"

    def read_annotations(self):
        trainval = self._read_list("cars_train", "devkit/cars_train_annos.mat")
        test = self._read_list("cars_test", "cars_test_annos_withlabels.mat")
        train, val = self.split_trainval(trainval)
        return train, val, test

    def _read_list(self, folder, annotation):
        annotation = self.annotation_file(*annotation.split("/"))
        meta = loadmat(self.annotation_file("devkit", "cars_meta.mat"), squeeze_me=True)
        names = [" ".join([w[-1], *w[:-1]]) for w in map(str.split, meta["class_names"].tolist())]
        items = []
        for image in loadmat(annotation, squeeze_me=True)["annotations"]:
            label = int(image["class"]) - 1
            path = os.path.join(self.image_dir, folder, str(image["fname"]))
            items.append(make_item(path, label, names[label]))
        check_images(items, annotation)
        return items
