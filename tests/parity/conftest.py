"""Trainers built for a recorded file: its class names, image size, CLIP and settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaptation.sentences import KEYS
from adaptation.trainer import PromptTrainer
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.engine import build_trainer
from datasets.fewshot import FewShotDataset
from tests.parity_files import Recorded, recorded_clip


@DATASET_REGISTRY.register()
class RecordedClasses(FewShotDataset):
    """An image of each recorded class: the trainers take their class names from the data set."""

    dataset_dir = "recorded"
    image_dir = ""
    #: times that the training list holds each image
    copies = 1

    def read_annotations(self):
        names = Path(self.dataset_dir, "names.txt").read_text(encoding="utf-8").splitlines()
        items = [
            Datum(impath=str(Path(self.dataset_dir, f"{label}.png")), label=label, classname=name)
            for label, name in enumerate(names)
        ]
        return items * self.copies, items, items


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Function that gives the checkpoint file of the recorded CLIP with a ViT or a ResNet."""
    folder, paths = tmp_path_factory.mktemp("clip"), {}

    def path(vision: str) -> str:
        if vision not in paths:
            paths[vision] = str(folder / f"{vision}.pt")
            torch.save(recorded_clip(vision), paths[vision])
        return paths[vision]

    return path


@pytest.fixture()
def build(make_cfg, clip_file, tmp_path, monkeypatch) -> Callable[..., PromptTrainer]:
    """Function that builds a trainer for a recorded file, with further config pairs.

    ``data_set`` is the registry name that the recorded classes stand in for, ``copies`` the number
    of training images per class.
    """

    def saved(recorded: Recorded, name: str) -> str:
        path = tmp_path / f"{name.replace('/', '-')}.pth.tar"
        torch.save({"state_dict": {name.split("/")[-1]: recorded[name]}}, path)
        return str(path)

    def build(
        trainer: str,
        recorded: Recorded,
        *pairs: object,
        data_set: str = "RecordedClasses",
        copies: int = 1,
    ) -> PromptTrainer:
        root = tmp_path / "root"
        (root / "recorded").mkdir(parents=True, exist_ok=True)
        names = recorded.classnames
        (root / "recorded" / "names.txt").write_text("\n".join(names), encoding="utf-8")
        for label in range(len(names)):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "recorded" / f"{label}.png")
        template = DATASET_REGISTRY.get(data_set).template
        stand_in = type(data_set, (RecordedClasses,), {"template": template, "copies": copies})
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, data_set, stand_in)
        # settings that name files, which the recorded file holds
        files = {word: saved(recorded, word) for word in recorded.arrays if "/weight" in word}
        pairs = tuple(files.get(word, word) if isinstance(word, str) else word for word in pairs)
        if "sentences" in recorded.arrays:
            about = dict(zip(names, recorded.arrays["sentences"].tolist(), strict=True))
            (root / "gpt_file").mkdir(exist_ok=True)
            file = root / "gpt_file" / f"{KEYS.get(data_set, data_set.lower())}_prompt.json"
            file.write_text(json.dumps(about), encoding="utf-8")
        side = recorded["images"].shape[-1]
        cfg = make_cfg(
            trainer,
            *("DATASET.NAME", data_set, "DATASET.ROOT", str(root)),
            *("MODEL.BACKBONE.NAME", clip_file("rn" if recorded.name.endswith("_rn") else "vit")),
            *("INPUT.SIZE", (side, side)),
            *pairs,
        )
        return build_trainer(cfg)

    return build
