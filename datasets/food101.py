"""Food-101 (Bossard et al., 2014): 101 dishes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """Class names are folder names; the images are split anew, not as in ``meta/``."""

    dataset_dir = "food-101"
    layout = "images/<class>/*"
    split_file = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."

    def read_annotations(self):
        return self.read_and_split_data(self.image_dir)
