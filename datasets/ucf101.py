"""UCF101 (Soomro et al., 2012): 101 human actions, the middle frame of each video, list 01."""

from __future__ import annotations

import os
import re

from dassl.data.datasets import DATASET_REGISTRY

from .annotations import ClassNames
from .fewshot import FewShotDataset
from .items import look_up, make_item


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """Class ``ApplyEyeMakeup`` is named ``Apply_Eye_Makeup``, and so is its image folder."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    layout = "UCF-101-midframes/<Renamed_Class>/*.jpg"
    split_file = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."

    def read_annotations(self):
        train, val = self.split_trainval(self._read_list("trainlist01.txt"))
        return train, val, self._read_list("testlist01.txt")

    def _read_list(self, name):
        """Read lines ``<action>/<video>.avi``, in the training list followed by the class id."""
        annotation = self.annotation_file("ucfTrainTestlist", name)
        labels = self._read_labels()
        items = []
        for line in self.annotation_lines(annotation):
            action, slash, video = line.with_slashes().split()[0].partition("/")
            if not slash:
                raise line.error(f"reads {str(line)!r}, not <action>/<video>.avi")
            label, classname = look_up(labels, action, line.where), class_name(action)
            path = os.path.join(self.image_dir, classname, video.replace(".avi", ".jpg"))
            items.append(make_item(path, label, classname))
        self.check_images(items, annotation)
        return items

    def _read_labels(self):
        """Read lines ``<class id from 1> <action>``."""
        labels: dict[str, int] = {}
        names = ClassNames()
        for line in self.annotation_lines("ucfTrainTestlist", "classInd.txt"):
            number, action = line.fields("<class id from 1> <action>")[:2]
            label = line.number(number) - 1
            names.add(label, class_name(action), line.where)
            if labels.setdefault(action, label) != label:
                raise line.error(f"gives {action} a second class id")
        return labels


def class_name(action):
    """Return ``Apply_Eye_Makeup`` for ``ApplyEyeMakeup``."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))
