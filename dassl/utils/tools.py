"""Files, seeds and information about the machine."""

from __future__ import annotations

import functools
import json
import math
import os
import os.path as osp
import random
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from support import files

__all__ = [
    "ImageError",
    "MissingImageError",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "use_deterministic_algorithms",
    "write_json",
]


#: EXIF orientation -> transposition that turns the image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: endings of photos that Pillow reads with a decoder which not every installation has
PHOTO_SUFFIXES = (".heic", ".heif", ".avif")
#: what to do about a damaged image, if nothing better is known
REPLACE = "replace it by a sound copy, or remove it"
HOW_TO_DECODE = (
    "install pillow-heif (for .heic) or a newer Pillow (for .avif), or save them as .jpg"
)


def mkdir_if_missing(dirname: str) -> None:
    """Create a folder and its parents unless it exists."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_range(node: Any, name: str, least: float, most: float, *keys: str) -> None:
    """Raise unless settings are numbers of a range.

    Args:
        node: node of the configuration.
        name: of the node, like "OPTIM".
        least, most: ends of the range, which are allowed; ``most`` may be infinite.
        keys: of the settings; those that the node lacks are passed over.

    Raises:
        ValueError: a value is outside, no number or NaN; names its key and the range.
    """
    for key in keys:
        value = getattr(node, key, least)
        if value is None or not least <= value <= most:
            allowed = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"{name}.{key} is {value}: use {allowed}")


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
    files.write_json(obj, fpath, indent=4)


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


def use_deterministic_algorithms() -> None:
    """Have PyTorch compute the same numbers each time, on a GPU as well.

    Call it before anything is computed on a GPU. An operation that has no such algorithm is an
    error from then on, which names it.
    """
    # without a workspace of its own, cuBLAS chooses algorithms by what runs beside it
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@functools.cache  # asking takes seconds, and nothing changes while a process runs
def collect_env_info() -> str:
    """Return PyTorch's report on the environment and the version of Pillow."""
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


class SettingError(ValueError):
    """A setting that fails in the middle of a run; the message names it."""


class ImageError(ValueError):
    """An image file that cannot be used; the message names it.

    Args:
        text: the message. A worker process of a loader passes an error on as a traceback that ends
            with the message; only the message is kept.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


class MissingImageError(ImageError, FileNotFoundError):
    """An image file that does not exist."""


@functools.cache
def image_decoders() -> tuple[str, ...]:
    """Return the versions of the libraries that decode images; let Pillow use pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return (PIL.__version__,)
    pillow_heif.register_heif_opener()
    return PIL.__version__, f"pillow-heif {pillow_heif.__version__}"


def decodable(suffixes: Iterable[str]) -> tuple[str, ...]:
    """Return those of the file name suffixes that Pillow has a decoder for here."""
    image_decoders()
    known = Image.registered_extensions()
    return tuple(suffix for suffix in suffixes if suffix in known)


def read_image(
    path: str, dataset: str = "", upright: bool = False, remedy: str = REPLACE
) -> Image.Image:
    """Read an image file as RGB; the file is closed on return.

    What Pillow's ``convert("RGB")`` gives, with two exceptions: 16-bit grey values are scaled to 8
    bits (there: cut off at 255), and transparent pixels show white (there: whatever colour the file
    holds below them). Of an animation the first frame is read.

    Args:
        path: image file.
        dataset: name of the data set it belongs to, used in error texts.
        upright: apply the EXIF orientation, as in :func:`turned_upright`.
        remedy: what to do about a damaged file, used in error texts.

    Raises:
        MissingImageError: if there is no such file (also a ``FileNotFoundError``).
        ImageError: if the file cannot be decoded, e.g. because it is truncated (a ``ValueError``).
    """
    owner = f" of data set {dataset}" if dataset else ""
    if not osp.isfile(path):
        raise MissingImageError(
            f'no image file at "{path}"{owner}: it was moved or deleted, or the list that names it '
            "is out of date"
        )
    image_decoders()
    try:
        with Image.open(path) as image:
            return to_rgb(turned_upright(image) if upright else image)
    # Pillow's decoders raise OSError, SyntaxError, ValueError and struct.error for damaged files.
    except Exception as error:
        raise ImageError(
            f'cannot read image "{path}"{owner}: {_explain(path, error, remedy)}'
        ) from error


def turned_upright(image: Image.Image) -> Image.Image:
    """Turn an opened image as its EXIF orientation says; leave it where that is damaged.

    Raises:
        OSError, SyntaxError, ValueError: the image cannot be decoded.
    """
    image.load()
    # ImageOps.exif_transpose writes the EXIF block anew, which fails where others of its values are
    # damaged; reading it may fail as well, with nearly anything, and the pixels are sound
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return image
    # Pillow turns a TIFF itself, and some of its versions leave the orientation as it was
    turn = None if image.format == "TIFF" else TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB, as :func:`read_image` describes.

    Raises:
        ValueError: if its pixels are floating-point numbers or exceed 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    # the modes that Pillow gives 16-bit grey images, depending on the file format
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its grey values exceed 16 bits; save it with 8 or 16 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _explain(path: str, error: Exception, remedy: str) -> str:
    """Say what is wrong with an image file, and what to do about it."""
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} Make it smaller"
    if osp.getsize(path) == 0:
        return f"the file is empty: {remedy}"
    if isinstance(error, UnidentifiedImageError) and _is_photo(path):
        return f"it is a HEIC or AVIF photo, which cannot be decoded here: {HOW_TO_DECODE}"
    if isinstance(error, UnidentifiedImageError):
        return f"it is damaged, not an image, or of a kind that Pillow does not know: {remedy}"
    if isinstance(error, ValueError):  # pixels that cannot be converted
        return str(error)
    return f"{error}; the file is damaged: {remedy}"


def _is_photo(path: str) -> bool:
    """Return whether a file starts as HEIC and AVIF files do, whatever its suffix."""
    with open(path, "rb") as file:
        return file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif")


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
    with files.replacing(dst) as tmp, open(tmp, "wb") as file, urlopen(url) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with tqdm(total=total, unit="B", unit_scale=True, desc="download", disable=None) as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
