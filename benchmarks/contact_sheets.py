"""Contact sheets of the embedded data sets: ``python -m benchmarks.contact_sheets``.

Writes ``docs/figures/data_<data set>.png``, test images of up to 40 classes with their names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.sweep import ROOT
from protocols import GENERATED
from support.command_line import add_traceback, run_command
from support.files import replacing

CLASSES = 40
COLUMNS = 10


def draw(stem: str, root: Path, out: Path) -> None:
    """Draw a data set's sheet."""
    import matplotlib.pyplot as plt
    from PIL import Image

    import datasets
    from dassl.config import get_cfg_default
    from dassl.data.datasets import build_dataset

    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "datasets" / f"{stem}.yaml"))
    cfg.DATASET.ROOT = str(root)
    data = build_dataset(cfg)
    # of a data set with more classes, some from first to last
    shown = np.unique(np.linspace(0, data.num_classes - 1, CLASSES).round().astype(int))
    lines = -(-len(shown) // COLUMNS)
    figure, grid = plt.subplots(
        lines, COLUMNS, figsize=(COLUMNS * 0.95, lines * 1.25), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, label) in enumerate(zip(grid.flat, shown, strict=False)):
        paths = [item.impath for item in data.test if item.label == label]
        # not the first of each: renditions take turns
        with Image.open(paths[number % len(paths)]) as image:
            axes.imshow(np.asarray(image), interpolation="nearest")
        axes.set_title(data.classnames[label].replace(" ", "\n", 1), fontsize=9, pad=3)
    with replacing(out / f"data_{stem}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=95)
        with Image.open(temporary) as picture:
            # a palette halves the file, and the images are noisy anyway
            few = picture.convert("RGB").quantize()
        few.save(temporary, format="PNG", optimize=True)
    plt.close(figure)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="data root")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="folder")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Draw all sheets."""
    for stem in GENERATED:
        draw(stem, args.root, args.out)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
