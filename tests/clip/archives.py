"""TorchScript archives with the keys, types and sizes of OpenAI's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


class Node(torch.nn.Module):
    """Holds parameters under given names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(state_dict: Mapping[str, Tensor], path: Path, resolution: int = 32) -> None:
    """Write the weights as an archive whose modules give OpenAI's keys, sizes beside them."""
    root = Node()
    sizes = {
        "input_resolution": torch.tensor(resolution),
        "context_length": torch.tensor(len(state_dict["positional_embedding"])),
        "vocab_size": torch.tensor(len(state_dict["token_embedding.weight"])),
    }
    for key, value in {**state_dict, **sizes}.items():
        *parents, name = key.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, Node())
            node = getattr(node, parent)
        if key in sizes or not value.is_floating_point() or "running" in name:
            node.register_buffer(name, value)
        else:
            node.register_parameter(name, torch.nn.Parameter(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what OpenAI's files are
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(root), path)
