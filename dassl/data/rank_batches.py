"""Loaders of what one of several processes of a run takes: parts of batches, or some batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

from dassl.utils import ranks

from .loaders import InterruptibleLoader

__all__ = ["SlicedLoader", "dealt_batches", "sliced", "with_batches"]


class SlicedLoader:
    """Loader of one process's part of every batch of another loader.

    The batches are the other loader's, in its order, each cut into as many pieces as there are
    processes, which differ by one image at most. A process whose piece is empty gets one image of
    the batch as a stand-in, which counts for nothing: ``ranks.ShareOfStep`` says how many images
    of the batch that was given last count.

    Args:
        loader: the loader of whole batches.
    """

    def __init__(self, loader: DataLoader) -> None:
        assert loader.batch_sampler is not None  # see sliced
        self.pieces = _Pieces(loader.batch_sampler)
        self.loader = with_batches(loader, self.pieces)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            share = ranks.ShareOfStep
            share.n_images, share.all_have_images = self.pieces.sizes.popleft()
            yield batch

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


class _Pieces(Sampler[list[int]]):
    """This process's piece of every batch of indices."""

    def __init__(self, batches: Iterable[Sequence[int]]) -> None:
        self.batches = batches
        #: sizes of the pieces that are on their way, which workers fetch some ahead, and whether
        #: all processes have one
        self.sizes: deque[tuple[int, bool]] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        sizes: deque[tuple[int, bool]] = deque()
        self.sizes = sizes
        rank, n_ranks = ranks.rank(), ranks.world_size()
        for batch in self.batches:
            piece = batch[len(batch) * rank // n_ranks : len(batch) * (rank + 1) // n_ranks]
            sizes.append((len(piece), len(batch) >= n_ranks))
            yield list(piece or batch[:1])

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # batch samplers have a length


class _Dealt(Sampler[list[int]]):
    """Every batch of indices whose turn is this process's."""

    def __init__(self, batches: Iterable[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.batches, ranks.rank(), None, ranks.world_size())


def sliced(loader: Any) -> Any:
    """Return a loader of this process's part of every batch; that of a process alone is the same.

    A loader that a trainer made in its own way gives its whole batches to every process.
    """
    return SlicedLoader(loader) if ranks.several() and _is_ours(loader) else loader


def dealt_batches(loader: Iterable[Any]) -> Iterable[Any]:
    """Return those batches of a loader, each whole, that are dealt to this process.

    Batch ``k`` goes to process ``k % world_size()``; images are read by the process that their
    batch goes to, except where a trainer made the loader in its own way.
    """
    if not ranks.several():
        return loader
    if _is_ours(loader):
        return with_batches(loader, _Dealt(loader.batch_sampler))  # type: ignore[attr-defined]
    return islice(loader, ranks.rank(), None, ranks.world_size())


def _is_ours(loader: Any) -> bool:
    return isinstance(loader, InterruptibleLoader) and loader.batch_sampler is not None


def with_batches(loader: Any, batches: Sampler[list[int]]) -> DataLoader:
    """Return a loader like another one, of other batches of indices: whole ones of a sliced one."""
    if isinstance(loader, SlicedLoader):
        loader = loader.loader
    return type(loader)(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
