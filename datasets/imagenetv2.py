"""ImageNetV2 (Recht et al., 2019), matched frequency: 10 new test images per ImageNet class."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import CLASS_NAMES, ImageNetVariant
from .items import list_class_folders, list_images


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """Folders are numbered as ImageNet's classes are, in the order of their WordNet ids."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    layout = "imagenetv2-matched-frequency-format-val/<0..999>/*, classnames.txt"

    def read_test(self):
        names = dict(enumerate(name for _, name in sorted(self.read_classnames().items())))
        items = []
        folders = list_class_folders(self.image_dir, "<0..999>")
        for label in sorted(int(name) for name in folders if name.isdecimal()):
            folder = os.path.join(self.image_dir, str(label))
            if label not in names:
                raise ValueError(
                    f"{folder} has no class name: {os.path.join(self.dataset_dir, CLASS_NAMES)} "
                    f"names {len(names)} classes, from 0 to {len(names) - 1}"
                )
            items += list_images(folder, label, names[label])
        return items
