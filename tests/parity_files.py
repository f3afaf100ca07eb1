"""Reading the recorded reference values; PARITY_DIR names another recorded set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PARITY_DIR = Path(
    os.environ.get("PARITY_DIR") or Path(__file__).parent / "fixtures" / "parity"
).resolve()


class Recorded:
    """One recorded file: tensors by name, texts, and the settings that it was made with."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(PARITY_DIR / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.config = json.loads(str(self.arrays["config"])) if "config" in self.arrays else {}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    @property
    def classnames(self) -> list[str]:
        return [str(name) for name in self.arrays["classnames"]]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under ``prefix/``, by the rest of their name."""
        return {
            key[len(prefix) + 1 :]: torch.from_numpy(value)
            for key, value in self.arrays.items()
            if key.startswith(f"{prefix}/")
        }


def recorded_names(*prefixes: str) -> list[str]:
    """Names of the recorded files that start so."""
    return sorted(path.stem for path in PARITY_DIR.glob("*.npz") if path.stem.startswith(prefixes))


def recorded_clip(vision: str = "vit") -> dict[str, Tensor]:
    """State dict of the recorded random CLIP with the given image tower (``vit`` or ``rn``)."""

    def floats(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)

    with np.load(PARITY_DIR / "tiny_clip_vit.npz") as arrays:
        state = {key: floats(arrays[key]) for key in arrays.files}
    rows, ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids")
    table = torch.zeros(49408, rows.shape[1])
    table[ids.long()] = rows
    state["token_embedding.weight"] = table
    if vision == "rn":
        state = {key: value for key, value in state.items() if not key.startswith("visual.")}
        with np.load(PARITY_DIR / "tiny_clip_rn_visual.npz") as arrays:
            state |= {key: floats(arrays[key]) for key in arrays.files}
    return state


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude of what is expected."""
    scale = expected.abs().max().clamp_min(1e-30)
    return float((value.detach() - expected).abs().max() / scale)
