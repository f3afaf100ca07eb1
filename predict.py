"""Label pictures with a finished run: ``python predict.py --model-dir RUN image.jpg folder/``.

Folders are searched for images, with all folders in them. No data set is needed, and without a run
``--trainer ZeroshotCLIP`` predicts with hand-written templates.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from support.command_line import positive, run_command
from tools.command import (
    add_classes,
    add_common,
    add_skip_bad,
    find_images,
    quietly,
    read_images,
    read_names,
)

if TYPE_CHECKING:
    from trainers import Label, Predictor


#: columns of ``--csv``
COLUMNS = ("image", "rank", "label", "probability", "rejected", "best_label", "best_probability")


def share(text: str) -> float:
    """Read a number from 0 to 1, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Print the most probable classes of pictures.",
        epilog="docs/predict.md has examples.",
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, and folders to search for them")
    add("--model-dir", metavar="RUN", help="output folder of a training run")
    add_classes(parser)
    add("--trainer", metavar="NAME", help="without a run: ZeroshotCLIP or ZeroshotCLIP2")
    add("--top-k", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    add("--batch-size", type=positive, default=100, metavar="N", help="images per forward pass")
    helped = "show the classes that reach P, 0 to 1; an image without any is rejected"
    add("--min-probability", type=share, default=0.0, metavar="P", help=helped)
    form = parser.add_mutually_exclusive_group()
    helped = "one JSON object per line and image"
    form.add_argument("--json", action="store_true", help=helped)
    helped = f"a table: {', '.join(COLUMNS)}"
    form.add_argument("--csv", action="store_true", help=helped)
    add_skip_bad(parser)
    add_common(parser)
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Check that the options name a run, or a zero-shot trainer with all that it needs.

    Raises:
        ValueError: they name neither or both, or an option is missing.
    """
    if (args.model_dir is None) == (args.trainer is None):
        raise ValueError("give either --model-dir RUN, or --trainer ZeroshotCLIP without a run")
    if args.trainer is not None and (args.classes is None or args.backbone is None):
        raise ValueError(f"--trainer {args.trainer} needs --backbone NAME and --classes FILE")
    if args.trainer is not None and args.load_epoch is not None:
        raise ValueError("--load-epoch goes with --model-dir, not with --trainer")


def load(args: argparse.Namespace) -> Predictor:
    """Return the predictor that the command line asks for."""
    classnames = None if args.classes is None else read_names(args.classes)

    from trainers import Predictor

    if args.trainer is not None:
        assert classnames is not None  # see check_options
        return Predictor.zero_shot(args.backbone, classnames, args.trainer, args.device)
    return Predictor.load(args.model_dir, classnames, args.load_epoch, args.device, args.backbone)


def show(path: str, found: Sequence[Label], args: argparse.Namespace) -> None:
    """Print the labels of one image that are probable enough; without any it is rejected.

    Args:
        path: of the image.
        found: the most probable classes, the most probable one first.
        args: of the command line.
    """
    best, labels = found[0], [label for label in found if label[1] >= args.min_probability]
    if args.json:
        content: dict[str, Any] = {
            "image": path,
            "predictions": [as_json(label) for label in labels],
        }
        if not labels:
            content["rejected"] = as_json(best)
        line = json.dumps(content, ensure_ascii=False)
        # what the console cannot show would be escaped in another way than JSON's
        print(line if _can_be_printed(line) else json.dumps(content))
        return
    if args.csv:
        rows = [(path, rank, *label, "no", *best) for rank, label in enumerate(labels, start=1)]
        # no image is missing from the table
        write_rows(rows or [(path, None, None, None, "yes", *best)])
        return
    print(path)
    for name, probability in labels:
        # as the text encoder reads it
        print(f"{100 * probability:9.2f} %  {name.replace('_', ' ')}")
    if not labels:
        shown = f"{best.name.replace('_', ' ')} has {100 * best.probability:.2f} %"
        print(f"   rejected: no class reaches {100 * args.min_probability:g} %; {shown}")


def as_json(label: Label) -> dict[str, str | float]:
    """Return a label as ``--json`` has it."""
    return {"label": label.name, "probability": label.probability}


def write_rows(rows: Sequence[Sequence]) -> None:
    """Print rows of the table of ``--csv``."""
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)


def _can_be_printed(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def predict(args: argparse.Namespace) -> None:
    """Print the labels of every image, batch by batch."""
    check_options(args)
    paths = find_images(args.images)
    with quietly(args):
        predictor = load(args)

    import torch

    if args.csv:
        write_rows([COLUMNS])
    images = read_images(paths, predictor.read, args.skip_bad)
    while part := list(islice(images, args.batch_size)):
        with quietly(args):
            labels = predictor.label(torch.stack([image for _, image in part]), args.top_k)
        for (path, _), found in zip(part, labels, strict=True):
            show(path, found, args)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 2 for what cannot be done."""
    return run_command(build_parser(), predict, argv)


if __name__ == "__main__":
    sys.exit(main())
