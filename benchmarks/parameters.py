"""Trainable parameters of every shipped ViT-B/16 setting: ``python -m benchmarks.parameters``.

The learners are built for a ViT-B/16 without weights (on PyTorch's meta device), so this needs
neither a download nor memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tabulate import tabulate

import datasets
import trainers
from adaptation.learner import PromptLearner
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from support.command_line import add_traceback, run_command

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "trainers"
#: constructor arguments of ViT-B/16, in their order
VIT_B16 = {
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}

#: training images of each class, which some learners have a row for
SHOTS = 16


def vit_b16() -> CLIP:
    """Build a ViT-B/16 without values, but for the token table, which learners copy words from."""
    with torch.device("meta"):
        clip = CLIP(**VIT_B16)
    clip.token_embedding.to_empty(device="cpu")
    return clip


def build_learner(method: str, config: Path, clip: CLIP, n_classes: int = 10) -> PromptLearner:
    """Build the learner that a config file asks for.

    Args:
        method: registry name.
        config: YAML file.
        clip: the model it is for.
        n_classes: matters for class-specific learners only; there are ``SHOTS`` images of each.
    """
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(str(config))
    classnames = [f"class {n}" for n in range(n_classes)]
    learner = TRAINER_REGISTRY.get(method).build_learner(cfg, clip, classnames)
    learner.set_n_images(SHOTS * n_classes)
    return learner


def backbone_of(config: Path) -> str:
    """Return the backbone that a config file names."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(str(config))
    return cfg.MODEL.BACKBONE.NAME


def counts() -> dict[tuple[str, str], int]:
    """Count trainable parameters by (method, config) of all shipped ViT-B/16 files."""
    clip, found = vit_b16(), {}
    for method in TRAINER_REGISTRY.registered_names():
        if issubclass(TRAINER_REGISTRY.get(method), PromptTrainer):
            for config in sorted((CONFIGS / method).glob("*.yaml")):
                if backbone_of(config) == "ViT-B/16":
                    learner = build_learner(method, config, clip)
                    found[method, config.stem] = sum(p.numel() for p in learner.parameters())
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Print the table."""
    rows = [(*key, f"{count:,}") for key, count in counts().items()]
    headers = ("method", "config", "trainable parameters")
    print(tabulate(rows, headers, tablefmt="github", colalign=("left", "left", "right")))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
