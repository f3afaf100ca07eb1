"""Files, seeds and information about the machine."""

from __future__ import annotations

import json
import os
import os.path as osp
import random
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

__all__ = [
    "check_isfile",
    "collect_env_info",
    "download_url",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "replacing",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def mkdir_if_missing(dirname: str) -> None:
    """Create a folder and its parents unless it exists."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


@contextmanager
def replacing(fpath: str) -> Iterator[str]:
    """Let a file appear complete or not at all.

    Args:
        fpath: file to create or replace; its folder is created when missing.

    Yields:
        A temporary name beside it. The file written there is renamed at the end of the block, and
        removed if the block raises.
    """
    mkdir_if_missing(osp.dirname(fpath))
    # unique also among machines that share the folder
    tmp = f"{fpath}.tmp{uuid.uuid4().hex}"
    try:
        yield tmp
        os.replace(tmp, fpath)
    finally:
        if osp.exists(tmp):
            os.remove(tmp)


def check_isfile(fpath: str) -> bool:
    """Return whether ``fpath`` is a file; warn if it is not."""
    found = osp.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not start with a dot.

    Args:
        path: folder.
        sort: sort the names; otherwise the order is the file system's.
    """
    items = [item for item in os.listdir(path) if not item.startswith(".")]
    if sort:
        items.sort()
    return items


def read_json(fpath: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not JSON; the text names the file.
    """
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str) -> None:
    """Write JSON with indent 4, creating the folder; the file appears complete or not at all."""
    with replacing(str(fpath)) as tmp, open(tmp, "w", encoding="utf-8") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))


def set_random_seed(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's (CPU and CUDA) generators.

    Args:
        seed: any integer >= 0.

    Raises:
        ValueError: if the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"a random seed must be >= 0, not {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def collect_env_info() -> str:
    """Return PyTorch's report on the environment and the version of Pillow."""
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def read_image(path: str, dataset: str = "") -> Image.Image:
    """Read an image file as RGB; the file is closed on return.

    Args:
        path: image file.
        dataset: name of the data set it belongs to, used in error texts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be decoded, e.g. because it is truncated.
    """
    owner = f" of data set {dataset}" if dataset else ""
    if not osp.isfile(path):
        raise FileNotFoundError(f'no image file at "{path}"{owner}')
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    # Pillow's decoders raise OSError, SyntaxError, ValueError and struct.error for damaged files.
    except Exception as error:
        raise ValueError(
            f'cannot decode image "{path}"{owner} ({error}); the file is damaged or not an '
            "image: fetch or extract it again"
        ) from error


def tolist_if_not(x: Any) -> list:
    """Return ``x`` if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]


def download_url(url: str, dst: str) -> None:
    """Download a file with a progress bar.

    Args:
        url: address (http, https, ftp or file).
        dst: file to write; it appears only when the download is complete.

    Raises:
        OSError: if the address cannot be read.
    """
    from urllib.request import urlopen

    print(f'* url="{url}"\n* destination="{dst}"')
    with replacing(dst) as tmp, open(tmp, "wb") as file, urlopen(url) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with tqdm(total=total, unit="B", unit_scale=True, desc="download") as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
