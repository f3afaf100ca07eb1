"""Mapping of target classes to source classes that a frozen classifier knows, by frequency."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def frequency_mapping(source: Tensor, target: Tensor, n_source: int, n_target: int) -> Tensor:
    """Choose one source class per target class, the most frequent pairs first.

    Args:
        source: ``(N,)`` predicted source class of each image.
        target: ``(N,)`` label of each image.
        n_source: number of source classes, at least ``n_target``.
        n_target: number of target classes.

    Returns:
        ``(n_target,)`` distinct source classes; equal counts go to the lower classes.
    """
    counts = torch.bincount(source * n_target + target, minlength=n_source * n_target)
    counts = counts.view(n_source, n_target).clone()
    mapping = torch.empty(n_target, dtype=torch.long)
    for _ in range(n_target):
        row, column = divmod(int(counts.flatten().argmax()), n_target)
        mapping[column] = row
        counts[row], counts[:, column] = -1, -1
    return mapping


def source_names(file: str, key: str) -> list[str]:
    """Read the names of the source classes, one per line; ImageNet's if ``file`` is empty.

    Args:
        file: path.
        key: config key that names it, for errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is empty, a web page or not UTF-8, or a name is empty.
    """
    if not file:
        from open_clip import IMAGENET_CLASSNAMES

        return list(IMAGENET_CLASSNAMES)
    if not Path(file).is_file():
        raise FileNotFoundError(f"{key}: no file {file!r}")
    from datasets.annotations import check_name, read_lines

    return [str(check_name(line, line.where)) for line in read_lines(file)]
