"""Names of backbones, as configurations, files of weights and config files have them."""

from __future__ import annotations

import re

# Ways to write a backbone: its own name, the file of its weights, the start of a config's name.
BACKBONES = {
    "ViT-B/16": ("vit-b-16", "vit_b16"),
    "ViT-B/32": ("vit-b-32", "vit_b32"),
    "ViT-L/14": ("vit-l-14", "vit_l14"),
    "RN50": ("rn50",),
    "RN101": ("rn101",),
    "tiny-2": ("tiny-2", "tiny_2"),
    "tiny": ("tiny",),
}


def backbone_name(text: str) -> str:
    """Return the backbone that a name, a file of weights or a config's name stands for, if any."""
    if text in BACKBONES:
        return text
    stem = text.rpartition("/")[2].removesuffix(".pt").lower()
    for backbone, spellings in BACKBONES.items():
        if any(re.match(rf"{re.escape(s)}(?![a-z0-9])", stem) for s in spellings):
            return backbone
    return ""
