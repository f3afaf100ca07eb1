"""Data sets that write their own images on first use."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator

from PIL import Image

from dassl.data.datasets import DatasetBase

from .fewshot import FewShotDataset
from .items import PARTS

# without a new image for so long (one takes milliseconds), nobody is writing any more
ABANDONED_AFTER_S = 3600


class GeneratedDataset(FewShotDataset):
    """Data set whose images come from the repository or one of its dependencies.

    The images and the split file appear below DATASET.ROOT in one step (a folder is filled under
    another name, then renamed), so an interrupted or a concurrent first use does no harm. What a
    killed process leaves is removed by a use more than an hour later.
    """

    image_dir = "images"
    split_file = "split.json"

    def images(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        """Yield part (one of PARTS), label, class name and image, in a fixed order."""
        raise NotImplementedError

    def locate(self, root: str) -> None:
        if not root:
            raise ValueError(
                f"DATASET.ROOT is empty: name a folder to write {self.name} to, e.g. --root data"
            )
        super().locate(root)

    def prepare(self) -> None:
        self._remove_abandoned()
        if os.path.isdir(self.dataset_dir):
            return
        print(f"Writing the images of {self.name} to {self.dataset_dir}")
        os.makedirs(self.data_root, exist_ok=True)
        folder = tempfile.mkdtemp(
            prefix=f".{os.path.basename(self.dataset_dir)}-", dir=self.data_root
        )
        try:
            os.chmod(folder, 0o755)  # mkdtemp keeps other users out
            self._write(folder)
            os.rename(folder, self.dataset_dir)
        except OSError:
            if not os.path.isdir(self.dataset_dir):  # else another process was faster
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_abandoned(self) -> None:
        """Remove what was left by processes that were killed while they wrote this data set."""
        name = f".{os.path.basename(self.dataset_dir)}-????????"
        for folder in glob.glob(os.path.join(glob.escape(self.data_root), name)):
            try:
                # the split file comes last: a folder that has it may be a user's copy
                unfinished = set(os.listdir(folder)) <= {"images"}
                last = max(os.stat(path).st_mtime for path, _, _ in os.walk(folder))
            except (OSError, ValueError):  # no folder, or another process has just removed it
                continue
            if unfinished and time.time() - last > ABANDONED_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: str) -> None:
        split: dict[str, list] = {part: [] for part in PARTS}
        for part, label, classname, image in self.images():
            name = f"{part}/{label:02d}/{len(split[part]):05d}.png"
            path = os.path.join(folder, "images", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            image.save(path)
            split[part].append([name, label, classname])
        with open(os.path.join(folder, self.split_file), "w", encoding="utf-8") as file:
            json.dump(split, file, indent=1)


class GeneratedVariant(GeneratedDataset):
    """Generated test images of another data set's classes; shots and base/new do not apply.

    The list is also the training list, since class names are taken from that; ``tests_of``, which
    names that other data set, has training on it refused.
    """

    def __init__(self, cfg):
        self.locate(cfg.DATASET.ROOT)
        _, _, test = self.read_split(
            os.path.join(self.dataset_dir, self.split_file), self.image_dir
        )
        self.check_lists(test, test)
        DatasetBase.__init__(self, train_x=test, test=test)
