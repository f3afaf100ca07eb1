"""Describable Textures (Cimpoi et al., 2014): 47 texture attributes."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """Class names are folder names; the images are split anew, not as in ``labels/``."""

    dataset_dir = "dtd"
    layout = "images/<class>/*"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."

    def read_annotations(self):
        return self.read_and_split_data(self.image_dir)
