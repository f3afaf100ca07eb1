"""Loading of CLIP's weights by name or path: official, embedded, of open_clip, or a local file."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file

from support.download import cache_folder, fetch
from support.files import sha256_of
from support.hints import nearest
from support.weight_files import check_container, require_intact, state_dict_in, why_unreadable

from . import openclip, tiny, torchscript
from .model import EXTRA_ENTRIES
from .weights import SIZE_ENTRIES, architecture

_BASE = "https://openaipublic.azureedge.net/clip/models"


# Name -> address; the last folder of an address is the SHA-256 of the file.
_MODELS = {
    "RN50": f"{_BASE}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": f"{_BASE}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": f"{_BASE}/7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": (
        f"{_BASE}/52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt"
    ),
    "RN50x64": (
        f"{_BASE}/be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt"
    ),
    "ViT-B/32": (
        f"{_BASE}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
    ),
    "ViT-B/16": (
        f"{_BASE}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt"
    ),
    "ViT-L/14": (
        f"{_BASE}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
    ),
    "ViT-L/14@336px": (
        f"{_BASE}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/"
        "ViT-L-14-336px.pt"
    ),
    **tiny.URLS,
}
# Name -> what it is, for lists of the names.
_ABOUT = {
    "RN50": "ResNet-50, images of 224 pixels",
    "RN101": "ResNet-101, images of 224 pixels",
    "RN50x4": "ResNet-50 of 4 times the computation, images of 288 pixels",
    "RN50x16": "ResNet-50 of 16 times the computation, images of 384 pixels",
    "RN50x64": "ResNet-50 of 64 times the computation, images of 448 pixels",
    "ViT-B/32": "ViT-B with patches of 32 pixels, images of 224 pixels",
    "ViT-B/16": "ViT-B with patches of 16 pixels, images of 224 pixels",
    "ViT-L/14": "ViT-L with patches of 14 pixels, images of 224 pixels",
    "ViT-L/14@336px": "ViT-L with patches of 14 pixels, images of 336 pixels",
    "tiny": "the first small ViT that comes with the repository, for old runs; images of 32 pixels",
    "tiny-2": "small ViT that comes with the repository, images of 32 pixels; docs/embedded.md",
}
_PAPER = (
    'Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML '
    "2021, arXiv 2103.00020"
)


_CHECKPOINT_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


def available_models() -> list[str]:
    """List the names that ``load`` takes; the tiny ones are embedded, the others downloaded."""
    return list(_MODELS)


def model_info(name: str) -> tuple[str, str]:
    """Return what a model of ``available_models`` is, in a line, and its paper or nothing.

    One that nothing is said about has its address for a line.
    """
    url = _MODELS[name]
    return _ABOUT.get(name, url), _PAPER if url.startswith(_BASE) else ""


def _download(url: str, root: str | Path | None = None) -> str:
    """Download a checkpoint to the cache folder, unless it is there already and intact.

    Args:
        url: an address as in ``_MODELS``: the file's SHA-256 is the folder before its name. The
            embedded backbone's address gives its expansion to a plain state-dict file.
        root: cache folder; by default the environment variable ``CLIP_CACHE`` or
            ``~/.cache/clip``.

    Returns:
        path of the file.

    Raises:
        RuntimeError: the download failed; the text says where the file belongs.
        ValueError: the address does not name a SHA-256.
    """
    folder = cache_folder(root)
    if tiny.is_embedded(url):
        return str(tiny.expand(tiny.weights_at(url), folder))
    parts = PurePosixPath(urlsplit(url).path).parts
    if len(parts) < 2 or not re.fullmatch(r"[0-9a-f]{64}", parts[-2]):
        raise ValueError(
            f"{url} cannot be checked: the folder before the file name must be the file's SHA-256"
        )
    return str(fetch(url, folder / parts[-1], parts[-2]))


def load_state_dict(
    name_or_path: str | Path,
    root: str | Path | None = None,
    before_reading: Callable[[Path], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Load the weights of a CLIP checkpoint with OpenAI's keys, on the CPU, for ``build_model``.

    Args:
        name_or_path: one of ``available_models()``, downloaded when absent; weights of open_clip,
            ``open_clip:ARCHITECTURE/TAG`` or ``open_clip:ARCHITECTURE=FILE`` (see
            ``clip.openclip``); or a local file: a TorchScript archive as OpenAI publishes them, a
            state dict saved by ``torch.save`` (plain or under a key of
            ``support.weight_files.STATE_KEYS``), or safetensors.
        root: cache folder; by default the environment variable ``CLIP_CACHE`` or
            ``~/.cache/clip``.
        before_reading: called with the file before it is read; what it raises comes through.

    Returns:
        state dict in the types of the file; the embedded backbone comes in float32. Weights of
        open_clip come with ``clip.model.EXTRA_ENTRIES`` for what their shapes do not say.

    Raises:
        FileNotFoundError: there is no such local file.
        RuntimeError: a download failed, or the file is damaged or holds pickled objects.
        ValueError: neither a known name nor a path, or the file holds no CLIP.
    """
    name, source = str(name_or_path), None
    if openclip.is_name(name):
        source = openclip.find(name)
        path = source.fetch(root)
    elif name in _MODELS:
        url = _MODELS[name]
        # An embedded file needs no expanded copy on the disk here.
        path = tiny.weights_at(url) if tiny.is_embedded(url) else Path(_download(url, root))
    else:
        path = _local_checkpoint(name)
    if before_reading is not None:
        before_reading(Path(path))
    check_container(path)
    try:
        content = _read(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # on a damaged file the readers raise nearly anything
        raise RuntimeError(f"cannot read the checkpoint {path}: {why_unreadable(path)}") from error
    try:
        state_dict = _weights(content)
        if source is None and not any(entry in state_dict for entry in EXTRA_ENTRIES):
            source = openclip.published_source(path)
            if source is None and name not in _MODELS:
                openclip.check_unnamed(state_dict, path)
        if source is not None:
            state_dict = source.convert(state_dict)
        architecture(state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return state_dict


def check_name(name_or_path: str | Path) -> None:
    """Check that a name or path is one that ``load_state_dict`` can find; read nothing.

    Raises:
        FileNotFoundError: there is no such local file.
        ValueError: neither a known name nor a path.
    """
    if openclip.is_name(str(name_or_path)):
        openclip.find(str(name_or_path))
    elif str(name_or_path) not in _MODELS:
        _local_checkpoint(str(name_or_path))


def _local_checkpoint(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder; the path of a checkpoint file is expected")
    if path.suffix in _CHECKPOINT_SUFFIXES or name.startswith((".", "~", os.sep)):
        raise FileNotFoundError(f"no such checkpoint file: {path.absolute()}")

    def folded(text: str) -> str:
        text = re.sub(r"[^a-z0-9]", "", text.lower())
        # as Hugging Face spells them: openai/clip-vit-base-patch16
        text = text.replace("base", "b").replace("large", "l").replace("patch", "")
        return re.sub(r"^(openai)?(clip)?", "", text)

    raise ValueError(
        f"unknown CLIP backbone {name!r}{nearest(name, _MODELS, fold=folded, show=repr) or '.'}"
        f" Known: {', '.join(_MODELS)}; weights of open_clip as "
        f"{openclip.PREFIX}ARCHITECTURE/TAG; or the path of a local checkpoint file"
    )


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return tiny.unpack(path) if tiny.is_packed(path) else load_file(path)
    if torchscript.is_torchscript(path):
        # OpenAI's own files are read as PyTorch reads them, any other one without running its code
        if sha256_of(path) in {part for url in _MODELS.values() for part in url.split("/")}:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*torch.jit.load.*deprecated")
                return torch.jit.load(path, map_location="cpu").state_dict()
        return torchscript.load_weights(path)
    require_intact(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _weights(content: object) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix("module."): value  # left by torch's DataParallel
        for key, value in state_dict_in(content, torch.Tensor).items()
        if key not in SIZE_ENTRIES
    }
