"""The table of readers: name -> how its input is made, changed, read and used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import lists, pictures, records, texts, weights
from .judging import Session


@dataclass(frozen=True)
class Reader:
    """A reader of something from outside.

    Args:
        make: makes its valid material in a folder.
        quick: inputs of the test run, according to what one costs.
        memory_mb: what reading one input may take at the most, in 10^6 bytes.
    """

    make: Callable[[Path], Session]
    quick: int = 60
    memory_mb: int = 500


READERS: dict[str, Reader] = {
    "checkpoint of a run": Reader(weights.RunCheckpoint, 10),
    "checkpoint to resume from": Reader(weights.ResumedCheckpoint, 30),
    "initial weights": Reader(weights.InitialWeights, 100),
    "published cache": Reader(weights.PublishedCache, 40),
    "CLIP: torch.save": Reader(weights.ClipStateDict, 20),
    "CLIP: TorchScript": Reader(weights.ClipArchive, 10),
    "CLIP: safetensors": Reader(weights.ClipSafetensors, 30),
    "open_clip configuration": Reader(weights.OpenClipConfig, 20),
    "teacher's features": Reader(weights.TeacherFeatures, 100),
    "decoded images": Reader(weights.DecodedImages, 60),
    "split file": Reader(lists.SplitFile, 40),
    "origin of a split": Reader(lists.SplitOrigin, 20),
    "drawn shots": Reader(lists.DrawnShots, 30),
    "pickled shots": Reader(lists.PickledShots, 40),
    "published shots": Reader(lists.SharedShots, 30),
    "ImageNet's lists": Reader(lists.ImageNetLists, 20),
    "annotations: text": Reader(lists.AnnotationLines, 40),
    "annotations: JSON": Reader(lists.AnnotationJson, 30),
    "annotations: MATLAB": Reader(lists.AnnotationMat, 25),
    "image list: CSV": Reader(lists.CsvList, 50),
    "image list: JSONL": Reader(lists.JsonlList, 50),
    "file of class names": Reader(lists.ClassNameFile, 50),
    "names of folders and files": Reader(lists.OddNames, 40),
    "class names": Reader(texts.ClassNames, 60),
    "templates": Reader(texts.TemplateFile, 60),
    "sentences of classes": Reader(texts.SentenceFile, 60),
    "config file": Reader(texts.ConfigFile, 20),
    "declared keys": Reader(texts.DeclaredKeys, 25),
    "table of sources": Reader(texts.SourcesTable, 15),
    "image": Reader(pictures.ImageFile, 100),
    "zip archive": Reader(pictures.ZipArchive, 40),
    "tar archive": Reader(pictures.TarArchive, 40),
    "result.json": Reader(records.ResultJson, 12),
    "log.txt": Reader(records.LogFile, 12),
    "predictions": Reader(records.KeptPredictions, 50),
}
