"""Choose the images of SymbolsA: those that the embedded CLIP gets wrong, as in ImageNet-A.

``python -m pretrain.hard_images`` renders further images of every second class as the Symbols data
set does. It writes to ``datasets/symbols_a.json`` the numbers of the first ones that zero-shot CLIP
takes for another of all 80 classes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import normalize, to_tensor

import clip
from clip.preprocessing import MEAN, STD
from datasets.symbols import HARD, HARD_IMAGES, NAMES, render
from support.command_line import add_traceback, output_file, positive, run_command
from support.files import write_json

TEMPLATE = "a photo of a {}."


@torch.no_grad()
def choose(backbone: str, per_class: int, candidates: int) -> dict[str, list[int]]:
    """Return class name -> numbers of the first candidates that a backbone gets wrong.

    Args:
        backbone: name or file of a CLIP.
        per_class: how many at most.
        candidates: how many are tried of each class.
    """
    model, _ = clip.load(backbone, device="cpu")
    text = F.normalize(
        model.encode_text(clip.tokenize([TEMPLATE.format(n) for n in NAMES])), dim=-1
    )
    chosen = {}
    for label in range(1, len(NAMES), 2):
        pictures = [to_tensor(render(label, HARD, index)) for index in range(candidates)]
        images = normalize(torch.stack(pictures), MEAN, STD)
        wrong = (model.encode_image(images) @ text.T).argmax(dim=1) != label
        chosen[NAMES[label]] = wrong.nonzero().flatten()[:per_class].tolist()
    return chosen


def act(args: argparse.Namespace) -> None:
    """Choose and write."""
    chosen = choose(args.backbone, args.per_class, args.candidates)
    write_json(chosen, str(args.out))
    print(f"{sum(map(len, chosen.values()))} images of {len(chosen)} classes in {args.out}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.hard_images", description=__doc__)
    add = parser.add_argument
    add("--out", type=output_file, default=Path(HARD_IMAGES), help="file to write")
    add("--backbone", default="tiny-2", help="CLIP that is to be wrong")
    add("--per-class", type=positive, default=20)
    add("--candidates", type=positive, default=60, help="images tried per class")
    add_traceback(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), act))
