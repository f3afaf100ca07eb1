"""Loaders of images, with workers that end quietly and a cache that is opened before they start."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from dassl.config import optional
from dassl.utils import check_availability, ranks
from support.ending import AGAIN, SIGNALS

from .dataset_wrapper import DatasetWrapper
from .samplers import AVAI_SAMPLERS, build_sampler

__all__ = ["CachingLoader", "InterruptibleLoader", "build_data_loader", "check_loaders"]

CACHE_CHOICES = ["exact", "fast", "none"]
CPU = torch.device("cpu")


@atexit.register  # after multiprocessing's own function, so that it runs before that waits for them
def _end_workers() -> None:
    """End workers that are left when the process ends: they ignore what asks them to."""
    left = [process for process in multiprocessing.active_children() if process.daemon]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler makes it an error
    for process in left:
        process.kill()


class InterruptibleLoader(DataLoader):
    """Loader whose workers ignore what a terminal or a scheduler sends to a whole group.

    They end with the process that they work for, which may need them to finish a step.
    """

    def __iter__(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        missed: list[int] = []
        # the workers start with these handlers, and keep them
        handlers = {
            number: signal.signal(number, lambda received, _: missed.append(received))
            for number in SIGNALS
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_DFL
        }
        try:
            return super().__iter__()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for number in missed[:1]:
                signal.raise_signal(number)


class CachingLoader(InterruptibleLoader):
    """Loader of a :class:`DatasetWrapper` that opens the cache before workers start."""

    dataset: DatasetWrapper

    def __iter__(self) -> Any:
        with ranks.main_first():  # which fills it, for the others to read
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
    drop_last: bool = True,
) -> DataLoader:
    """Build a loader.

    Args:
        cfg: configuration.
        sampler_type: name of a sampler.
        data_source: list of Datum.
        batch_size: images per batch.
        n_domain: domains per batch (RandomDomainSampler).
        n_ins: images per class (RandomClassSampler).
        tfm: transform, or a list of them.
        is_train: training loader.
        dataset_wrapper: class used instead of :class:`DatasetWrapper`; it reads its images itself,
            so they are not cached.
        drop_last: in training, drop the last batch when it is incomplete and not the only one.

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
        drop_last=is_train and drop_last and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available()
        and cfg.USE_CUDA
        and cfg.DEVICE != "cpu"
        and not on_gpu,
        worker_init_fn=_end_in_silence,
    )


def _end_in_silence(worker: int) -> None:
    """Keep a worker from ending before the run that it works for, and from a traceback then."""
    for number in AGAIN:
        # PyTorch has workers end at SIGTERM, where no step could be finished
        if signal.getsignal(number) != signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = show


def check_loaders(settings: Any) -> None:
    """Check the samplers and batch sizes of a run.

    Args:
        settings: node ``DATALOADER``.

    Raises:
        ValueError: for an unknown sampler or a batch without images; names the config key.
    """
    parts = ["TRAIN_X", "TEST"]
    if unlabelled_settings(settings) is not settings.TRAIN_X:
        parts.append("TRAIN_U")
    for part in parts:
        check_availability(settings[part].SAMPLER, AVAI_SAMPLERS, f"DATALOADER.{part}.SAMPLER")
        size = settings[part].BATCH_SIZE
        if size < 1:
            raise ValueError(
                f"DATALOADER.{part}.BATCH_SIZE: {size} is not a number of images from 1 on"
            )


def unlabelled_settings(settings: Any) -> Any:
    """Return the settings of the loader of unlabelled images.

    Args:
        settings: node ``DATALOADER``; one of a tree made elsewhere need not have ``TRAIN_U``.
    """
    own = getattr(settings, "TRAIN_U", None)
    return settings.TRAIN_X if own is None or own.SAME_AS_X else own
