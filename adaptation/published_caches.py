"""Caches of training features in files of published code: keys, and the class of each."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.utils.checkpoint import read_data

#: how far the norm of a key may be from 1: keys are stored in half precision
NORM_TOLERANCE = 0.02


def _matrix(path: Path, what: str) -> Tensor:
    found = read_data(str(path))
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.dim() != 2:
        kind = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else "of another kind"
        raise ValueError(f"{path} should hold {what}, a matrix, and holds something {kind}")
    if not found.is_floating_point():
        raise ValueError(
            f"{path} is damaged: {what} are of type {str(found.dtype).removeprefix('torch.')}, and "
            "published code writes real numbers with a point"
        )
    stored = 0 if found.is_meta else found.untyped_storage().nbytes()
    if found.numel() * found.element_size() > stored:
        raise ValueError(
            f"{path} is damaged: {what} are of shape {tuple(found.shape)}, with fewer "
            "numbers stored"
        )
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
        in_columns: whether the file is Tip-Adapter's, of unit keys ``(embed_dim, N)``, else
            Tip-Adapter-F's, of trained keys ``(N, embed_dim)`` of any norm.

    Returns:
        keys ``(N, embed_dim)`` float32, and the classes of them ``(N,)``.

    Raises:
        FileNotFoundError: there are no values.
        ValueError: a file is damaged or holds something else, the two are not of one cache, or it
            has another width or number of classes, no keys at all, or none for a class.
    """
    keys = _matrix(path, "the keys of a cache")
    keys = keys.t().contiguous() if in_columns else keys
    if keys.shape[1] != embed_dim:
        raise ValueError(
            f"{path} has keys of {keys.shape[1]} values, and features of this backbone have "
            f"{embed_dim}: set --backbone to that of its training"
        )
    if not len(keys):
        raise ValueError(f"{path} is damaged: it has no keys; fetch or make it again")
    norms = keys.norm(dim=1)
    if in_columns and (wrong := (norms - 1).abs() > NORM_TOLERANCE).any():
        raise ValueError(
            f"{path} is damaged: {int(wrong.sum())} of {len(keys)} keys are not of unit norm (the "
            f"first has {norms[wrong][0]:.3g}); fetch or make it again"
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
    counts = labels.bincount(minlength=n_classes)
    if empty := int((counts == 0).sum()):
        raise ValueError(
            f"{values_path} has no key for {empty} of {n_classes} classes (the first: class "
            f"{int(counts.argmin())}, counted from 0): put the two of one whole training there"
        )
    return keys, labels
