"""Order in which a loader visits its images."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.utils import check_availability

__all__ = [
    "AVAI_SAMPLERS",
    "RandomClassSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "build_sampler",
]

AVAI_SAMPLERS = [
    "RandomSampler",
    "SequentialSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomClassSampler",
]


class RandomDomainSampler(Sampler[int]):
    """Batches of ``n_domain`` random domains with equally many images each.

    Args:
        data_source: list of Datum.
        batch_size: images per batch, a multiple of ``n_domain``.
        n_domain: domains per batch; <= 0 means all.

    Raises:
        ValueError: if ``n_domain`` does not fit the data or the batch size.
    """

    def __init__(self, data_source: Sequence[Any], batch_size: int, n_domain: int) -> None:
        self.data_source = data_source
        self.domain_dict = _indices_by(data_source, "domain")
        self.domains = list(self.domain_dict)
        self.n_domain, self.n_img_per_domain = _share(len(self.domains), batch_size, n_domain)
        self.batch_size = batch_size
        self.length = len(list(iter(self)))

    def __iter__(self) -> Iterator[int]:
        pools = _shuffled(self.domain_dict)
        order: list[int] = []
        while True:
            domains = random.sample(self.domains, self.n_domain)
            for domain in domains:
                order.extend(_take(pools[domain], self.n_img_per_domain))
            if any(len(pools[domain]) < self.n_img_per_domain for domain in domains):
                return iter(order)

    def __len__(self) -> int:
        return self.length


class SeqDomainSampler(Sampler[int]):
    """Batches that hold all domains, each in random order without repetition.

    Args:
        data_source: list of Datum.
        batch_size: images per batch, a multiple of the number of domains.

    Raises:
        ValueError: if it is not.
    """

    def __init__(self, data_source: Sequence[Any], batch_size: int) -> None:
        self.data_source = data_source
        self.domain_dict = _indices_by(data_source, "domain")
        self.domains = sorted(self.domain_dict)
        self.n_domain, self.n_img_per_domain = _share(len(self.domains), batch_size, 0)
        self.batch_size = batch_size
        rounds = min(len(items) // self.n_img_per_domain for items in self.domain_dict.values())
        self.length = rounds * batch_size

    def __iter__(self) -> Iterator[int]:
        pools = _shuffled(self.domain_dict)
        for _ in range(self.length // self.batch_size):
            for domain in self.domains:
                yield from _take(pools[domain], self.n_img_per_domain)

    def __len__(self) -> int:
        return self.length


class RandomClassSampler(Sampler[int]):
    """Batches of random classes with ``n_ins`` images each.

    Args:
        data_source: list of Datum.
        batch_size: images per batch.
        n_ins: images per class; classes with fewer are drawn with replacement.

    Raises:
        ValueError: if the batch holds less than one class, or more classes than there are.
    """

    def __init__(self, data_source: Sequence[Any], batch_size: int, n_ins: int) -> None:
        if batch_size < n_ins:
            raise ValueError(
                f"RandomClassSampler: BATCH_SIZE ({batch_size}) must be at least N_INS ({n_ins})"
            )
        self.data_source = data_source
        self.batch_size = batch_size
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        self.index_dic = _indices_by(data_source, "label")
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise ValueError(
                f"RandomClassSampler: a batch needs {self.ncls_per_batch} classes (BATCH_SIZE / "
                f"N_INS), the data has {len(self.labels)}"
            )
        self.length = len(list(iter(self)))

    def __iter__(self) -> Iterator[int]:
        chunks: dict[int, list[list[int]]] = {}
        for label, items in self.index_dic.items():
            if len(items) < self.n_ins:
                items = random.choices(items, k=self.n_ins)
            else:
                items = random.sample(items, len(items))
            whole = len(items) // self.n_ins
            chunks[label] = [items[i * self.n_ins : (i + 1) * self.n_ins] for i in range(whole)]
        labels = list(self.labels)
        order: list[int] = []
        while len(labels) >= self.ncls_per_batch:
            for label in random.sample(labels, self.ncls_per_batch):
                order.extend(chunks[label].pop(0))
                if not chunks[label]:
                    labels.remove(label)
        return iter(order)

    def __len__(self) -> int:
        return self.length


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Any] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """Build a sampler by name.

    Raises:
        ValueError: for an unknown name, or settings that do not fit the data.
    """
    check_availability(sampler_type, AVAI_SAMPLERS)
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    return RandomClassSampler(data_source, batch_size, n_ins)


def _indices_by(data_source: Sequence[Any], attribute: str) -> dict[int, list[int]]:
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return groups


def _share(available: int, batch_size: int, n_domain: int) -> tuple[int, int]:
    if n_domain <= 0:
        n_domain = available
    if n_domain > available:
        raise ValueError(f"N_DOMAIN ({n_domain}) exceeds the number of domains ({available})")
    if batch_size % n_domain:
        raise ValueError(
            f"BATCH_SIZE ({batch_size}) must be a multiple of the domains per batch ({n_domain})"
        )
    return n_domain, batch_size // n_domain


def _shuffled(groups: dict[int, list[int]]) -> dict[int, list[int]]:
    return {key: random.sample(items, len(items)) for key, items in groups.items()}


def _take(pool: list[int], count: int) -> list[int]:
    if len(pool) < count:
        return random.choices(pool, k=count)
    chosen = pool[-count:]
    del pool[-count:]
    return chosen
