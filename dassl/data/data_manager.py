"""From a configuration to data set, transforms and loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate
from torch.utils.data import DataLoader

from dassl.config import optional

from .dataset_wrapper import DatasetWrapper
from .datasets import build_dataset
from .loaders import build_data_loader, check_loaders, unlabelled_settings

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]


def __getattr__(name: str) -> Any:
    """Import names that published code imports from here when asked; torchvision takes seconds."""
    if name in ("INTERPOLATION_MODES", "build_transform"):
        from . import transforms

        return getattr(transforms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        tfm_train: Callable | Sequence[Callable] | None
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

        def train_loader(settings: Any, data: Sequence[Any], drop_last: bool) -> DataLoader:
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
                drop_last=drop_last,
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
        drop_last = optional(cfg, "DATALOADER.DROP_LAST")
        self.train_loader_x = train_loader(settings.TRAIN_X, dataset.train_x, drop_last)
        unlabelled, train_u = unlabelled_settings(settings), dataset.train_u
        self.train_loader_u = train_loader(unlabelled, train_u, True) if train_u else None
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
