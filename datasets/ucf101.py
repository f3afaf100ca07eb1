"""UCF101 (Soomro et al., 2012): 101 human actions, the middle frame of each video, list 01."""

from __future__ import annotations

import os
import re

from dassl.data.datasets import DATASET_REGISTRY

from .fewshot import FewShotDataset, check_images, look_up, make_item


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """Class `ApplyEyeMakeup` is named `Apply_Eye_Makeup`, and so is its image folder."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"

    def read_annotations(self):
        train, val = self.split_trainval(self._read_list("trainlist01.txt"))
        return train, val, self._read_list("testlist01.txt")

    def _read_list(self, name):
        """Lines are `<action>/<video>.avi`, in the training list followed by the class id."""
        annotation = self.annotation_file("ucfTrainTestlist", name)
        lines = self.annotation_lines("ucfTrainTestlist", "classInd.txt")
        labels = {action: int(number) - 1 for number, action in map(str.split, lines)}
        items = []
        for line in self.annotation_lines(annotation):
            action, video = line.split()[0].split("/")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            path = os.path.join(self.image_dir, classname, video.replace(".avi", ".jpg"))
            items.append(make_item(path, look_up(labels, action, annotation), classname))
        check_images(items, annotation)
        return items
