"""A data set file as published prompt-learning code has them: split JSON, shots, base/new."""

import math
import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import mkdir_if_missing, read_json, write_json


@DATASET_REGISTRY.register()
class UpstreamColours(DatasetBase):
    dataset_dir = "upstream_colours"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        split = read_json(os.path.join(self.dataset_dir, "split.json"))
        train, val, test = (self.read(split[part]) for part in ("train", "val", "test"))

        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            folder = os.path.join(self.dataset_dir, "split_fewshot")
            mkdir_if_missing(folder)
            cache = os.path.join(folder, f"shot_{num_shots}-seed_{cfg.SEED}.json")
            if not os.path.exists(cache):
                shots = self.generate_fewshot_dataset(train, num_shots=num_shots)
                val_shots = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
                write_json({"train": self.rows(shots), "val": self.rows(val_shots)}, cache)
            cached = read_json(cache)
            train, val = self.read(cached["train"]), self.read(cached["val"])

        train, val, test = self.subsample(train, val, test, subset=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def read(self, rows):
        return [
            Datum(impath=os.path.join(self.image_dir, path), label=int(label), classname=name)
            for path, label, name in rows
        ]

    def rows(self, items):
        return [
            (os.path.relpath(item.impath, self.image_dir), item.label, item.classname)
            for item in items
        ]

    @staticmethod
    def subsample(*lists, subset):
        if subset == "all":
            return lists
        labels = sorted({item.label for item in lists[0]})
        half = math.ceil(len(labels) / 2)
        kept = labels[:half] if subset == "base" else labels[half:]
        new_label = {label: i for i, label in enumerate(kept)}
        return [
            [
                Datum(item.impath, new_label[item.label], item.domain, item.classname)
                for item in items
                if item.label in new_label
            ]
            for items in lists
        ]
