"""The data set of a loader, which reads and transforms the images of a list, cached or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from dassl.config import optional
from dassl.utils import read_image

from .datasets import DATASET_REGISTRY, DatasetBase
from .image_cache import DECODED, CacheBusyError, CacheError, PixelFile, open_cache
from .views import Views

__all__ = ["DatasetWrapper"]


class _CroppedImages(NamedTuple):
    """Test images in the cache, cropped by the fixed first part of their transform."""

    #: the whole transform, from PIL image to tensor
    transform: Callable
    #: its remaining steps, from uint8 tensor ``(3, H, W)`` to tensor
    remaining_steps: Callable
    #: uint8 arrays ``(3, H, W)``
    pixels: PixelFile


class DatasetWrapper(TorchDataset):
    """Data set that reads and transforms the images of a list of Datum.

    Items are dicts with ``label``, ``domain``, ``impath``, ``index`` and ``img``: a tensor
    ``(3, H, W)``, a list of tensors with ``DATALOADER.K_TRANSFORMS`` > 1 in training, or the PIL
    image when there is no transform. Further transforms of a list give ``img2``, ``img3``, ...;
    ``DATALOADER.RETURN_IMG0`` adds ``img0``, resized but not augmented. A training image whose view
    comes again has its name as ``view`` (see :class:`~dassl.data.views.Views`); not in a subclass,
    which may change the image.

    Args:
        cfg: configuration.
        data_source: list of Datum.
        transform: transform, list of transforms, or None.
        is_train: training set.

    Raises:
        ValueError: if several views are asked for without a transform, or seeded ones in a run
            without a seed.
    """

    # for subclasses whose constructor does not call this one
    views: Views | None = None

    def __init__(
        self,
        cfg: Any,
        data_source: Sequence[Any],
        transform: Callable | Sequence[Callable] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform: Any = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.views = Views(cfg) if is_train else None
        if self.k_tfm > 1 and transform is None:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to repeat "
                "(INPUT.NO_TRANSFORM)"
            )
        if self.return_img0:
            from .transforms import build_plain_transform

            self.to_tensor = build_plain_transform(cfg)
        self._decoded: PixelFile | None = None
        self._cropped: _CroppedImages | None = None
        self._cache_tried_for: Any = self  # a transform later on, which may be None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that seeded views of training images follow from."""
        if self.views is not None:
            self.views.epoch = epoch

    def open_cache(self) -> None:
        """Open the cache of the images, and fill it first if it is not there.

        Training images are kept as decoded, others as cropped by the fixed part of their
        transform, where it has one. Without a cache, images are decoded each time.

        Raises:
            ImageError: if an image cannot be read; the message names it.
        """
        if self._cache_tried_for is self.transform:
            return
        self._decoded = self._cropped = None
        try:
            if self.is_train:
                self._decoded = self._open(DECODED, self._decode)
            elif not self.return_img0:
                self._cropped = self._open_cropped()
        except CacheBusyError as error:
            print(f"Note: images of {self.cfg.DATASET.NAME} are decoded this time: {error}")
            return
        except CacheError as error:
            print(f"Note: images of {self.cfg.DATASET.NAME} are decoded each time: {error}")
        self._cache_tried_for = self.transform

    def _open(self, form: str, load: Callable[[str], np.ndarray]) -> PixelFile:
        return open_cache(
            [item.impath for item in self.data_source],
            load,
            form,
            dataset=self.cfg.DATASET.NAME,
            upright=optional(self.cfg, "INPUT.EXIF"),
            limit=optional(self.cfg, "DATALOADER.CACHE_MB") * 10**6,
            threads=max(1, self.cfg.DATALOADER.NUM_WORKERS),
        )

    def _open_cropped(self) -> _CroppedImages | None:
        from .transforms import split_fixed

        parts = split_fixed(self.transform, optional(self.cfg, "DATALOADER.CACHE") == "fast")
        if parts is None:
            return None
        fixed, remaining_steps = parts

        def load(path: str) -> np.ndarray:
            image = fixed(self._read_file(path))
            return np.asarray(image).transpose(2, 0, 1)

        return _CroppedImages(self.transform, remaining_steps, self._open(repr(fixed), load))

    def _decode(self, path: str) -> np.ndarray:
        return np.asarray(self._read_file(path))

    def _read_file(self, path: str) -> Image.Image:
        name = self.cfg.DATASET.NAME
        known = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY else DatasetBase
        remedy = getattr(known, "image_remedy", DatasetBase.image_remedy)
        return read_image(path, name, optional(self.cfg, "INPUT.EXIF"), remedy)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        if self.views is None:
            return self._load(idx)
        impath = self.data_source[idx].impath
        with self.views.drawing(impath):
            output = self._load(idx)
        if type(self) is DatasetWrapper and isinstance(output["img"], torch.Tensor):
            view = self.views.name(self.transform, impath)
            if view is not None:
                output["view"] = view
        return output

    def _load(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output = {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": idx,
        }
        cropped = self._cropped
        if cropped is not None and cropped.transform is self.transform:
            output["img"] = cropped.remaining_steps(torch.from_numpy(cropped.pixels[idx]))
            return output
        img0 = self._read(idx)
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for i, tfm in enumerate(self.transform):
                output["img" if i == 0 else f"img{i + 1}"] = self._transform_image(tfm, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _read(self, idx: int) -> Image.Image | np.ndarray:
        """Read an image, or if the transform takes them, its cached pixels ``(H, W, 3)``."""
        if self._decoded is None:
            return self._read_file(self.data_source[idx].impath)
        from .transforms import PixelCompose

        pixels = self._decoded[idx]
        takes_pixels = isinstance(self.transform, PixelCompose) and not self.return_img0
        return pixels if takes_pixels else Image.fromarray(pixels)

    def _transform_image(self, tfm: Callable, img0: Any) -> Any:
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views
