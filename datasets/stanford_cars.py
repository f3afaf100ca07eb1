"""Stanford Cars (Krause et al., 2013): 196 makes, models and years."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .annotations import FETCH_AGAIN, check_name, read_mat, whole_number
from .fewshot import FewShotDataset
from .items import make_item

TEST_ANNOTATION = "cars_test_annos_withlabels.mat"


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """Class names are the official ones with the year moved to the front."""

    dataset_dir = "stanford_cars"
    image_dir = "."
    layout = (
        "cars_train/*.jpg, cars_test/*.jpg, devkit/cars_train_annos.mat, devkit/cars_meta.mat, "
        "cars_test_annos_withlabels.mat"
    )
    split_file = "split_zhou_StanfordCars.json"

    def read_annotations(self):
        names = self._read_names()
        trainval = self._read_list("cars_train", "devkit/cars_train_annos.mat", names)
        test = self._read_list("cars_test", TEST_ANNOTATION, names)
        train, val = self.split_trainval(trainval)
        return train, val, test

    def _read_names(self):
        path = self.annotation_file("devkit", "cars_meta.mat")
        names = []
        for number, name in enumerate(read_mat(path, "class_names").tolist(), start=1):
            text = name if isinstance(name, str) else ""  # an empty text is an empty array
            words = check_name(text, f"{path}, class {number}").split()
            names.append(" ".join([words[-1], *words[:-1]]))
        return names

    def _read_list(self, folder, file, names):
        annotation = self.annotation_file(*file.split("/"))
        images = read_mat(annotation, "annotations", ["fname"])
        if "class" not in images.dtype.names:
            raise ValueError(
                f"{annotation} has no classes, as the test annotations of the devkit have none: "
                f"the file with labels is needed, {TEST_ANNOTATION} ({self.guide})"
            )
        items = []
        for number, image in enumerate(images, start=1):
            label = whole_number(image["class"])
            if label is None or not 1 <= label <= len(names):
                raise ValueError(
                    f"{annotation}, image {number} has the class {image['class']!r}, not one from "
                    f"1 to {len(names)}: {FETCH_AGAIN}"
                )
            path = os.path.join(self.image_dir, folder, str(image["fname"]))
            items.append(make_item(path, label - 1, names[label - 1]))
        self.check_images(items, annotation)
        return items
