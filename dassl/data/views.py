"""Views of images: draw them from a seed, and name them so that the same view is recognised."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dassl.config import optional
from dassl.utils.random_state import seeded_generators
from dassl.utils.tools import image_decoders

__all__ = ["Views"]


class Views:
    """Draw and name views: what a transform makes of the training images in an epoch.

    With ``INPUT.SEEDED_VIEWS`` a view follows from the run seed, the epoch and the image's path
    below the data root, and from nothing else: neither from the order of the images nor from the
    process that reads them.

    Args:
        cfg: configuration.

    Raises:
        ValueError: if views are to be seeded in a run without a seed.
    """

    def __init__(self, cfg: Any) -> None:
        self.seeded, self.seed = optional(cfg, "INPUT.SEEDED_VIEWS"), cfg.SEED
        if self.seeded and self.seed < 0:
            raise ValueError(
                f"INPUT.SEEDED_VIEWS needs the seed of the run, but SEED is {self.seed}: set one "
                "of 0 or more (--seed)"
            )
        #: index of the epoch, from 0; trainers set it
        self.epoch = 0
        self.dataset, self.upright = cfg.DATASET.NAME, optional(cfg, "INPUT.EXIF")
        self.root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self._recipe: tuple[Callable | None, int, str | None] = (None, -1, None)

    def drawing(self, impath: str) -> AbstractContextManager[None]:
        """Return the context in which the views of an image are to be drawn."""
        if not self.seeded:
            return nullcontext()
        digest = _digest("view", self.seed, self.epoch, self._path(impath))
        return seeded_generators(int(digest[:15], 16))

    def name(self, transform: Callable, impath: str) -> str | None:
        """Name the view that ``transform`` gives in this epoch; equal names mean equal pixels.

        A name has two parts with a slash between them. The first stands for the data set, how its
        files are read, the transform (with seed and epoch where it is random), and the libraries;
        the second for path, size and time of change of the file.

        Args:
            transform: from PIL image to tensor.
            impath: the image file.

        Returns:
            None if the view does not come again, or if that is not known.
        """
        if self._recipe[:2] != (transform, self.epoch):
            self._recipe = (transform, self.epoch, self._recipe_of(transform))
        recipe = self._recipe[2]
        if recipe is None:
            return None
        file = os.stat(impath)
        return f"{recipe}/{_digest(self._path(impath), file.st_size, file.st_mtime_ns)}"

    def _recipe_of(self, transform: Callable) -> str | None:
        import torchvision  # takes seconds; whoever has a transform has imported it

        from .transforms.parameters import draws_nothing, transform_parameters

        parameters = transform_parameters(transform)
        if parameters is None:
            return None
        drawn = None
        if not draws_nothing(transform):
            if not self.seeded:
                return None
            drawn = (self.seed, self.epoch)
        versions = (*image_decoders(), torch.__version__, torchvision.__version__)
        return _digest(self.dataset, self.upright, parameters, drawn, versions)

    def _path(self, impath: str) -> str:
        return os.path.relpath(impath, self.root).replace(os.sep, "/")


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
