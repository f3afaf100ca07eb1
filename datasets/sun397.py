"""SUN397 (Xiao et al., 2010): 397 scenes, partition 01 of the official ten."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset, check_images, look_up, make_item


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """Class `/a/apartment_building/outdoor` is named `outdoor apartment_building`."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"

    def read_annotations(self):
        labels = {name: n for n, name in enumerate(self.annotation_lines("ClassName.txt"))}
        train, val = self.split_trainval(self._read_list("Training_01.txt", labels))
        return train, val, self._read_list("Testing_01.txt", labels)

    def _read_list(self, name, labels):
        """Lines are image paths such as `/a/abbey/sun_aaalbzqrimafwbiv.jpg`."""
        annotation = self.annotation_file(name)
        items = []
        for line in self.annotation_lines(annotation):
            folder = line.rpartition("/")[0]
            classname = " ".join(reversed(folder.split("/")[2:]))
            path = os.path.join(self.image_dir, *line.split("/")[1:])
            items.append(make_item(path, look_up(labels, folder, annotation), classname))
        check_images(items, annotation)
        return items
