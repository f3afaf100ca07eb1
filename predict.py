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
from typing import TYPE_CHECKING

from support.command_line import positive, run_command
from tools.command import (
    add_classes,
    add_common,
    find_images,
    quietly,
    read_names,
)

if TYPE_CHECKING:
    from trainers import Label, Predictor


#: columns of ``--csv``
COLUMNS = ("image", "rank", "label", "probability")


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
    add("--skip-bad", action="store_true", help="name files that are no images and leave them out")
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


def show(path: str, labels: Sequence[Label], args: argparse.Namespace) -> None:
    """Print the labels of one image; without any it is rejected."""
    if args.json:
        found = [{"label": name, "probability": probability} for name, probability in labels]
        content = {"image": path, "predictions": found}
        line = json.dumps(content, ensure_ascii=False)
        # what the console cannot show would be escaped in another way than JSON's
        print(line if _can_be_printed(line) else json.dumps(content))
        return
    if args.csv:
        rows = [(path, rank, *label) for rank, label in enumerate(labels, start=1)]
        # no image is missing from the table
        write_rows(rows or [(path, None, None, None)])
        return
    print(path)
    for name, probability in labels:
        # as the text encoder reads it
        print(f"{100 * probability:9.2f} %  {name.replace('_', ' ')}")
    if not labels:
        print(f"   rejected: no class reaches {100 * args.min_probability:g} %")


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
    bad = 0
    for start in range(0, len(paths), args.batch_size):
        read, batch = [], []
        for path in paths[start : start + args.batch_size]:
            try:
                batch.append(predictor.read(path))
                read.append(path)
            except (OSError, ValueError) as error:
                if not args.skip_bad:
                    raise ValueError(f"{error}; --skip-bad leaves such files out") from error
                print(f"skipped: {error}", file=sys.stderr)
                bad += 1
        if batch:
            with quietly(args):
                labels = predictor.label(torch.stack(batch), args.top_k)
            for path, found in zip(read, labels, strict=True):
                show(path, [label for label in found if label[1] >= args.min_probability], args)
    if bad:
        print(f"skipped {bad} of {len(paths)} files", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, or 2 for what cannot be done."""
    return run_command(build_parser(), predict, argv)


if __name__ == "__main__":
    sys.exit(main())
