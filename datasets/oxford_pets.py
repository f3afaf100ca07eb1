"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 cat and dog breeds."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset, check_images, make_item


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """Class names are image names without their number, in lower case."""

    dataset_dir = "oxford_pets"
    split_file = "split_zhou_OxfordPets.json"

    def read_annotations(self):
        train, val = self.split_trainval(self._read_list("trainval.txt"))
        return train, val, self._read_list("test.txt")

    def _read_list(self, name):
        """Lines are `<image name> <class id from 1> <species> <breed id>`."""
        annotation = self.annotation_file("annotations", name)
        items = []
        for line in self.annotation_lines(annotation):
            image, label = line.split()[:2]
            breed = image.rpartition("_")[0].lower()
            path = os.path.join(self.image_dir, f"{image}.jpg")
            items.append(make_item(path, int(label) - 1, breed))
        check_images(items, annotation)
        return items
