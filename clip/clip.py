"""OpenAI's interface: load a model with its preprocessing, tokenise texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .loading import _MODELS, _download, available_models, load_state_dict
from .model import CLIP
from .preprocessing import MEAN, STD, _transform
from .tokens import _tokenizer, tokenize
from .weights import build_model, convert_weights

if TYPE_CHECKING:
    from PIL import Image

#: trainers written for OpenAI's package also use the private ones
__all__ = [
    "_MODELS",
    "_download",
    "_tokenizer",
    "_transform",
    "available_models",
    "build_model",
    "load",
    "load_state_dict",
    "tokenize",
]


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[CLIP, Callable[[Image.Image], torch.Tensor]]:
    """Load a CLIP model and the preprocessing of its images.

    Args:
        name: one of ``available_models()``, weights of open_clip, or the path of a checkpoint file.
        device: where to put the model; by default CUDA when available, else the CPU.
        jit: must be False; there for callers of OpenAI's function.
        download_root: cache folder; by default the environment variable ``CLIP_CACHE`` or
            ``~/.cache/clip``.

    Returns:
        the model in evaluation mode, in half precision as OpenAI's but float32 on the CPU; and a
        function from a PIL image to a normalised tensor ``(3, resolution, resolution)``.

    Raises:
        NotImplementedError: ``jit`` is True.
        FileNotFoundError, RuntimeError, ValueError: see ``load_state_dict``.
    """
    if jit:
        raise NotImplementedError(
            "jit=True is not supported: the model is rebuilt from the checkpoint's weights; "
            "call load with jit=False"
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build_model(load_state_dict(name, download_root)).to(device)
    if device.type == "cpu":
        model.float()
    else:
        convert_weights(model)
    mean, std = (
        default if stated is None else tuple(stated.tolist())
        for stated, default in ((model.image_mean, MEAN), (model.image_std, STD))
    )
    return model, _transform(model.visual.input_resolution, mean, std)
