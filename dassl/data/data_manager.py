"""From a configuration to data set, transforms and loaders."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dassl.config import optional
from dassl.utils import check_availability, read_image

from .datasets import build_dataset
from .image_cache import DECODED, CacheBusyError, CacheError, PixelFile, open_cache
from .samplers import AVAI_SAMPLERS, build_sampler
from .views import Views

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]

CACHE_CHOICES = ["exact", "fast", "none"]
CPU = torch.device("cpu")


def __getattr__(name: str) -> Any:
    """Names that published code imports from here; torchvision takes seconds to import."""
    if name in ("INTERPOLATION_MODES", "build_transform"):
        from . import transforms

        return getattr(transforms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class InterruptibleLoader(DataLoader):
    """Loader whose workers leave Ctrl-C to the process that they work for, and end with it."""

    def __iter__(self) -> Iterator[Any]:
        if threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        missed: list[int] = []
        # the workers start with this handler, and keep it
        handler = signal.signal(signal.SIGINT, lambda number, _: missed.append(number))
        try:
            return super().__iter__()
        finally:
            signal.signal(signal.SIGINT, handler)
            if missed:
                signal.raise_signal(signal.SIGINT)


class CachingLoader(InterruptibleLoader):
    """Loader of a :class:`DatasetWrapper` that opens the cache before workers start."""

    def __iter__(self) -> Iterator[Any]:
        self.dataset.open_cache()
        return super().__iter__()


def build_data_loader(
    cfg: Any,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Any] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Callable | Sequence[Callable] | None = None,
    is_train: bool = True,
    dataset_wrapper: type | None = None,
) -> DataLoader:
    """Build a loader.

    Args:
        cfg: configuration.
        sampler_type: name of a sampler.
        data_source: list of Datum.
        batch_size: images per batch. In training the last batch is dropped when it is incomplete
            and not the only one.
        n_domain: domains per batch (RandomDomainSampler).
        n_ins: images per class (RandomClassSampler).
        tfm: transform, or a list of them.
        is_train: training loader.
        dataset_wrapper: class used instead of :class:`DatasetWrapper`; it reads its images itself,
            so they are not cached.

    Raises:
        ValueError: if there are no images, or DATALOADER.CACHE is none of CACHE_CHOICES.
    """
    cache = optional(cfg, "DATALOADER.CACHE")
    check_availability(cache, CACHE_CHOICES, "DATALOADER.CACHE")
    if not data_source:
        part = "training" if is_train else "test"
        raise ValueError(
            f"data set {cfg.DATASET.NAME} has no {part} images for this loader; check its folder "
            "below DATASET.ROOT (--root) and the class selection"
        )
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    wrapper = DatasetWrapper if dataset_wrapper is None else dataset_wrapper
    cached = dataset_wrapper is None and cache != "none"
    # images that the transform leaves on a GPU are made by this process, and cannot be pinned
    on_gpu = getattr(tfm, "device", CPU).type != "cpu"
    return (CachingLoader if cached else InterruptibleLoader)(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=0 if on_gpu else cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA and not on_gpu,
        worker_init_fn=_end_in_silence,
    )


def _end_in_silence(worker: int) -> None:
    """Have a worker say nothing of a batch that is no longer wanted, since Ctrl-C ended the run."""

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = show


def check_loaders(settings: Any) -> None:
    """Check what node ``DATALOADER`` says of the loaders of a run.

    Raises:
        ValueError: for an unknown sampler or a batch without images; names the config key.
    """
    parts = ["TRAIN_X", "TEST"]
    if _unlabelled(settings) is not settings.TRAIN_X:
        parts.append("TRAIN_U")
    for part in parts:
        check_availability(settings[part].SAMPLER, AVAI_SAMPLERS, f"DATALOADER.{part}.SAMPLER")
        size = settings[part].BATCH_SIZE
        if size < 1:
            raise ValueError(
                f"DATALOADER.{part}.BATCH_SIZE: {size} is not a number of images from 1 on"
            )


def _unlabelled(settings: Any) -> Any:
    """Settings of the loader of unlabelled images; a tree made elsewhere need not have any."""
    own = getattr(settings, "TRAIN_U", None)
    return settings.TRAIN_X if own is None or own.SAME_AS_X else own


class DataManager:
    """Data set, transforms and loaders of a run.

    Args:
        cfg: configuration.
        custom_tfm_train: used instead of the built training transform.
        custom_tfm_test: used instead of the built test transform.
        dataset_wrapper: class used instead of :class:`DatasetWrapper`.

    Raises:
        ValueError: for settings of loaders that cannot be used.
    """

    def __init__(
        self,
        cfg: Any,
        custom_tfm_train: Callable | Sequence[Callable] | None = None,
        custom_tfm_test: Callable | None = None,
        dataset_wrapper: type | None = None,
    ) -> None:
        # torchvision takes seconds to import; importing the engine does not need it.
        from .transforms import build_transform

        check_loaders(cfg.DATALOADER)
        dataset = build_dataset(cfg)
        if custom_tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True)
        else:
            print("* Using custom transform for training")
            tfm_train = custom_tfm_train
        if custom_tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False)
        else:
            print("* Using custom transform for testing")
            tfm_test = custom_tfm_test

        def train_loader(settings: Any, data: Sequence[Any]) -> DataLoader:
            return build_data_loader(
                cfg,
                sampler_type=settings.SAMPLER,
                data_source=data,
                batch_size=settings.BATCH_SIZE,
                n_domain=settings.N_DOMAIN,
                n_ins=settings.N_INS,
                tfm=tfm_train,
                is_train=True,
                dataset_wrapper=dataset_wrapper,
            )

        def test_loader(data: Sequence[Any]) -> DataLoader:
            return build_data_loader(
                cfg,
                sampler_type=cfg.DATALOADER.TEST.SAMPLER,
                data_source=data,
                batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
            )

        settings = cfg.DATALOADER
        self.train_loader_x = train_loader(settings.TRAIN_X, dataset.train_x)
        self.train_loader_u = (
            train_loader(_unlabelled(settings), dataset.train_u) if dataset.train_u else None
        )
        self.val_loader = test_loader(dataset.val) if dataset.val else None
        self.test_loader = None if dataset.test is None else test_loader(dataset.test)
        self.tfm_test = tfm_test

        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        self.dataset = dataset
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    def show_dataset_summary(self, cfg: Any) -> None:
        """Print name, domains and sizes as a two-column table."""
        table: list[list[str]] = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            table.append(["Source", str(list(cfg.DATASET.SOURCE_DOMAINS))])
        if cfg.DATASET.TARGET_DOMAINS:
            table.append(["Target", str(list(cfg.DATASET.TARGET_DOMAINS))])
        table.append(["# classes", f"{self.num_classes:,}"])
        table.append(["# train_x", f"{len(self.dataset.train_x):,}"])
        if self.dataset.train_u:
            table.append(["# train_u", f"{len(self.dataset.train_u):,}"])
        if self.dataset.val:
            table.append(["# val", f"{len(self.dataset.val):,}"])
        table.append(["# test", f"{len(self.dataset.test or ()):,}"])
        print(tabulate(table, disable_numparse=True))


class _Crops(NamedTuple):
    """Cached test images: what `transform` gives, but for `rest`, which starts from pixels."""

    transform: Callable
    rest: Callable
    pixels: PixelFile


class DatasetWrapper(TorchDataset):
    """Reads and transforms the images of a list of Datum.

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

    def __init__(
        self,
        cfg: Any,
        data_source: Sequence[Any],
        transform: Callable | Sequence[Callable] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
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
        self._crops: _Crops | None = None
        self._cache_tried_for: Any = self  # the transform it was; this is none

    def open_cache(self) -> None:
        """Open the cached images, which are made first if they are missing.

        Training images are kept as decoded, others as cropped by the fixed part of their
        transform, where it has one. Without a cache, images are decoded each time.

        Raises:
            ImageError: if an image cannot be read; the message names it.
        """
        if self._cache_tried_for is self.transform:
            return
        self._decoded = self._crops = None
        try:
            if self.is_train:
                self._decoded = self._open(DECODED, self._decode)
            elif not self.return_img0:
                self._crops = self._open_crops()
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

    def _open_crops(self) -> _Crops | None:
        from .transforms import split_fixed

        parts = split_fixed(self.transform, optional(self.cfg, "DATALOADER.CACHE") == "fast")
        if parts is None:
            return None
        fixed, rest = parts

        def load(path: str) -> np.ndarray:
            image = fixed(self._read_file(path))
            return np.asarray(image).transpose(2, 0, 1)

        return _Crops(self.transform, rest, self._open(repr(fixed), load))

    def _decode(self, path: str) -> np.ndarray:
        return np.asarray(self._read_file(path))

    def _read_file(self, path: str) -> Image.Image:
        return read_image(path, self.cfg.DATASET.NAME, optional(self.cfg, "INPUT.EXIF"))

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
        if self._crops is not None and self._crops.transform is self.transform:
            output["img"] = self._crops.rest(torch.from_numpy(self._crops.pixels[idx]))
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
        """The image, or if the transform takes them, its cached pixels ``(H, W, 3)``."""
        if self._decoded is None:
            return self._read_file(self.data_source[idx].impath)
        from .transforms import PixelCompose

        pixels = self._decoded[idx]
        takes_pixels = isinstance(self.transform, PixelCompose) and not self.return_img0
        return pixels if takes_pixels else Image.fromarray(pixels)

    def _transform_image(self, tfm: Callable, img0: Any) -> Any:
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views
