"""SUN397 (Xiao et al., 2010): 397 scenes, partition 01 of the official ten."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .annotations import Line, check_name, label_lines
from .fewshot import FewShotDataset
from .items import look_up, make_item


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """Class ``/a/apartment_building/outdoor`` is named ``outdoor apartment_building``."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    layout = "SUN397/<letter>/<class>[/<sub>]/*, ClassName.txt, Training_01.txt, Testing_01.txt"
    split_file = "split_zhou_SUN397.json"

    def read_annotations(self):
        lines = [line.with_slashes() for line in self.annotation_lines("ClassName.txt")]
        labels = label_lines(lines)
        for line in lines:
            check_name(class_name(line), line.where)
        train, val = self.split_trainval(self._read_list("Training_01.txt", labels))
        return train, val, self._read_list("Testing_01.txt", labels)

    def _read_list(self, name, labels):
        """Read a list of image paths such as ``/a/abbey/sun_aaalbzqrimafwbiv.jpg``."""
        annotation = self.annotation_file(name)
        items = []
        for line in map(Line.with_slashes, self.annotation_lines(annotation)):
            folder = line.rpartition("/")[0]
            path = os.path.join(self.image_dir, *line.split("/")[1:])
            label = look_up(labels, folder, line.where)
            items.append(make_item(path, label, class_name(folder)))
        self.check_images(items, annotation)
        return items


def class_name(folder):
    """Return ``outdoor apartment_building`` for ``/a/apartment_building/outdoor``."""
    return " ".join(reversed(folder.split("/")[2:]))
