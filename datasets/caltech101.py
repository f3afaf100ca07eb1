"""Caltech101 (Fei-Fei et al., 2004): 100 object classes, background and easy faces left out."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset

IGNORED = ("BACKGROUND_Google", "Faces_easy")
NEW_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """Class names are folder names, four of them renamed."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    layout = "101_ObjectCategories/<class>/*"
    split_file = "split_zhou_Caltech101.json"

    def read_annotations(self):
        return self.read_and_split_data(self.image_dir, ignored=IGNORED, new_cnames=NEW_NAMES)
