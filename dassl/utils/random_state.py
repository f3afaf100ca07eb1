"""State of all random generators as plain data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_random_state", "seeded_generators", "set_random_state"]


def get_random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's (CPU and CUDA) generators.

    The result holds numbers, tuples and tensors only, so a checkpoint with it can be read with
    ``weights_only=True``.
    """
    state: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = state
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue from what :func:`get_random_state` returned.

    CUDA states are skipped when the number of devices differs.
    """
    random.setstate(state["python"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Start the CPU generators of Python, NumPy and PyTorch from a seed within the block.

    Afterwards they go on as if nothing had been drawn.

    Args:
        seed: 0 to 2**63 - 1.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would seed CUDA's as well
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
