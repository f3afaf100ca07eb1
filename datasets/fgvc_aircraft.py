"""FGVC-Aircraft (Maji et al., 2013): 100 aircraft variants."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from .annotations import label_lines
from .fewshot import FewShotDataset
from .items import look_up, make_item


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """The official three lists; labels are line numbers of ``variants.txt``."""

    dataset_dir = "fgvc_aircraft"
    layout = (
        "the archive's data/ renamed: images/*.jpg, variants.txt, "
        "images_variant_{train,val,test}.txt"
    )
    template = "a photo of a {}, a type of aircraft."

    def read_annotations(self):
        labels = label_lines(self.annotation_lines("variants.txt"))
        return tuple(self._read_list(part, labels) for part in ("train", "val", "test"))

    def _read_list(self, part, labels):
        """Read lines ``<image id> <variant>``; a variant may hold spaces and slashes."""
        annotation = self.annotation_file(f"images_variant_{part}.txt")
        items = []
        for line in self.annotation_lines(annotation):
            image, variant = line.fields("<image id> <variant>", maxsplit=1)
            path = os.path.join(self.image_dir, f"{image}.jpg")
            items.append(make_item(path, look_up(labels, variant, line.where), variant))
        self.check_images(items, annotation)
        return items
