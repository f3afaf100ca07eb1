"""Caches of training features in files of published code: keys, and the class of each."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.utils.checkpoint import read_data


def _matrix(path: Path, what: str) -> Tensor:
    found = read_data(str(path))
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.dim() != 2:
        kind = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else "of another kind"
        raise ValueError(f"{path} should hold {what}, a matrix, and holds something {kind}")
    if not found.isfinite().all():
        raise ValueError(f"{path} is damaged: {what} are not all finite")
    return found.detach().float()


def read_cache(
    path: Path, values_path: Path, embed_dim: int, n_classes: int, in_columns: bool
) -> tuple[Tensor, Tensor]:
    """Read a cache that published code wrote.

    Args:
        path: file of the keys, a matrix in any precision.
        values_path: file of the values, ``(N, C)``, which are 1 for the class of a key and else 0.
        embed_dim: width of the backbone's features.
        n_classes: number of classes of the run, C.
        in_columns: whether keys are stored as ``(embed_dim, N)``, else as ``(N, embed_dim)``.

    Returns:
        keys ``(N, embed_dim)`` float32, and the classes of them ``(N,)``.

    Raises:
        FileNotFoundError: there are no values.
        ValueError: a file is damaged or holds something else, the two are not of one cache, or it
            has another width or number of classes.
    """
    keys = _matrix(path, "the keys of a cache")
    keys = keys.t().contiguous() if in_columns else keys
    if keys.shape[1] != embed_dim:
        raise ValueError(
            f"{path} has keys of {keys.shape[1]} values, and features of this backbone have "
            f"{embed_dim}: set --backbone to that of its training"
        )
    if not values_path.is_file():
        raise FileNotFoundError(
            f"{path} does not say which class a key is of: put {values_path.name} of the same "
            "training beside it"
        )
    values = _matrix(values_path, "the values of a cache")
    if len(values) != len(keys):
        raise ValueError(
            f"{values_path} is of {len(values)} images, and {path.name} of {len(keys)}: put the "
            "two of one training there"
        )
    if values.shape[1] != n_classes:
        raise ValueError(
            f"{values_path} is of {values.shape[1]} classes, and this run has {n_classes}: test "
            "it on the classes that it was made with"
        )
    labels = values.argmax(dim=1)
    if not torch.equal(values, F.one_hot(labels, n_classes).to(values)):
        raise ValueError(f"{values_path} is damaged: a row is not 1 for one class and else 0")
    return keys, labels
