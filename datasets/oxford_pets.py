"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 cat and dog breeds."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .annotations import ClassNames
from .fewshot import FewShotDataset
from .items import make_item


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """Class names are image names without their number, in lower case."""

    dataset_dir = "oxford_pets"
    layout = "images/*.jpg, annotations/trainval.txt, annotations/test.txt"
    split_file = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."

    def read_annotations(self):
        names = ClassNames()
        train, val = self.split_trainval(self._read_list("trainval.txt", names))
        return train, val, self._read_list("test.txt", names)

    def _read_list(self, name, names):
        """Read lines ``<image name> <class id from 1> <species> <breed id>``."""
        annotation = self.annotation_file("annotations", name)
        items = []
        for line in self.annotation_lines(annotation):
            image, number = line.fields("<image name> <class id from 1>")[:2]
            label, breed = line.number(number) - 1, image.rpartition("_")[0].lower()
            names.add(label, breed, line.where)
            items.append(make_item(os.path.join(self.image_dir, f"{image}.jpg"), label, breed))
        self.check_images(items, annotation)
        return items
