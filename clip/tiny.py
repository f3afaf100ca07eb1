"""The embedded backbones: their file format and how they become ordinary CLIP state dicts.

A file is safetensors with the keys of OpenAI's state dict and float16 values. Only the token
table is stored differently, since most of its rows are never trained: ``token_embedding.ids``
(int32, ascending) and ``token_embedding.rows`` hold the trained rows. The metadata say how many
rows the whole table has (``vocab_size``) and, if the others are to be random instead of zero, the
seed and standard deviation to draw them with (``token_seed``, ``token_std``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from support.files import replacing, sha256_of
from support.words import counted

FOLDER = Path(__file__).parent / "weights"
#: what a backbone's address starts with, before its name
SCHEME = "embedded:"
#: name -> address; a name keeps its file, since old runs ask for it
URLS = {name: SCHEME + name for name in ("tiny", "tiny-2")}

TABLE = "token_embedding.weight"
IDS = "token_embedding.ids"
ROWS = "token_embedding.rows"
#: largest table of tokens that a packed file may ask for, in numbers; that of a CLIP of open_clip's
#: largest size is a quarter of it
MOST_VALUES = 1 << 28
# safetensors writes several metadata keys in random order; a single one keeps files reproducible.
METADATA = "clip"


def is_embedded(url: str) -> bool:
    """Return whether an address is that of an embedded backbone."""
    return url.startswith(SCHEME)


def weights_at(url: str) -> Path:
    """Return the file of an embedded backbone's address."""
    return FOLDER / f"{url.removeprefix(SCHEME)}.safetensors"


def is_packed(path: str | Path) -> bool:
    """Return whether a safetensors file stores its token table sparsely, as ``pack`` writes it."""
    with safe_open(path, framework="pt") as file:
        return IDS in file.keys()


def pack(
    state_dict: Mapping[str, torch.Tensor],
    ids: Sequence[int] | torch.Tensor,
    path: str | Path,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write a CLIP state dict as a small file; the same input gives the same bytes.

    Args:
        state_dict: full state dict with OpenAI's keys; floating-point values become float16.
        ids: token ids whose rows of the token table are kept, in any order.
        path: file to create or replace.
        metadata: JSON-like notes. ``token_seed`` (int) with ``token_std`` (float) make ``unpack``
            draw the other rows from N(0, token_std^2); without them these rows are zero.

    Raises:
        ValueError: an id is repeated or outside the table, only one of ``token_seed`` and
            ``token_std`` is given, or a value does not fit in float16.
    """
    notes = dict(metadata or {})
    if ("token_seed" in notes) != ("token_std" in notes):
        raise ValueError("metadata needs both token_seed and token_std, or neither")
    table = state_dict[TABLE]
    ids = torch.as_tensor(ids, dtype=torch.int64).cpu().sort().values
    if len(ids.unique()) != len(ids):
        repeated = counted(len(ids) - len(ids.unique()), "token")
        raise ValueError(f"ids names {repeated} more than once")
    if len(ids) and not 0 <= ids[0] <= ids[-1] < len(table):
        raise ValueError(
            f"ids reach from {ids[0]} to {ids[-1]}, but {TABLE} has rows 0 to {len(table) - 1}"
        )
    tensors = {key: value for key, value in state_dict.items() if key != TABLE}
    tensors[ROWS] = table[ids.to(table.device)]
    for key, value in tensors.items():
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.half()
            if not value.isfinite().all():
                raise ValueError(f"{key} holds values that are not finite in float16")
        tensors[key] = value.contiguous().clone()
    tensors[IDS] = ids.int()
    notes["vocab_size"] = len(table)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA: json.dumps(notes, sort_keys=True)})


def unpack(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file written by ``pack`` as a full state dict in float32 (integers stay integers).

    Args:
        path: the packed file.

    Returns:
        state dict with OpenAI's keys, ``token_embedding.weight`` with all its rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one that ``pack`` wrote.
        safetensors.SafetensorError: the file is damaged.
    """
    with safe_open(path, framework="pt") as file:
        notes = (file.metadata() or {}).get(METADATA)
        state_dict = {key: file.get_tensor(key) for key in file.keys()}
    if notes is None or IDS not in state_dict or ROWS not in state_dict:
        raise ValueError(f"{path} lacks {IDS}, {ROWS} or the metadata {METADATA!r}: not packed")
    notes = json.loads(notes)
    size = notes["vocab_size"]
    if type(size) is not int or size * state_dict[ROWS].shape[1] > MOST_VALUES:
        raise ValueError(f"{path} asks for a table of {size!r:.80} tokens")
    state_dict = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    ids, rows = state_dict.pop(IDS).long(), state_dict.pop(ROWS)
    shape = (notes["vocab_size"], rows.shape[1])
    if "token_seed" in notes:
        # RandomState and not a torch generator: NumPy has frozen its stream for good.
        noise = np.random.RandomState(notes["token_seed"]).standard_normal(shape)
        table = torch.from_numpy((noise * notes["token_std"]).astype(np.float32))
    else:
        table = torch.zeros(shape)
    table[ids] = rows
    state_dict[TABLE] = table
    return state_dict


def trained_ids(path: str | Path) -> torch.Tensor:
    """Read the ids (int64, ascending) of the tokens whose rows a packed file holds."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(IDS).long()


def expand(source: Path, root: Path) -> Path:
    """Write a packed file as a plain state-dict file that ``torch.load`` reads.

    Args:
        source: packed file.
        root: folder for the plain file, whose name holds the hash of ``source``.

    Returns:
        path of the plain file, written before or now.
    """
    target = root / f"{source.stem}-{sha256_of(source)[:16]}.pt"
    if not target.is_file():
        with replacing(target) as temporary:
            torch.save(unpack(source), temporary)
    return target
