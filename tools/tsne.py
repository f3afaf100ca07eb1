"""Image features before and after prompting: ``python -m tools.tsne RUN --root DATA``.

Features (unit norm) of the images of one split of the run's data set, by the frozen CLIP and with
the prompts of the run, each laid out in the plane by t-SNE (van der Maaten and Hinton, JMLR 2008;
scikit-learn's, started from principal components, seeded). Writes a PNG with both and a CSV: image,
label, class, frozen_x, frozen_y, prompted_x, prompted_y. Only neighbourhoods mean something in such
a picture; axes, and distances between far points, do not.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.command_line import positive, run_command

from .command import (
    load_run,
    quietly,
    run_parser,
    stem,
    write_csv,
    write_png,
)

if TYPE_CHECKING:
    import numpy as np

    from dassl.data.datasets import Datum
    from trainers import Predictor

COLUMNS = ("image", "label", "class", "frozen_x", "frozen_y", "prompted_x", "prompted_y")

#: classes up to which colours can be told apart and are named
NAMED_CLASSES = 20


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = run_parser("Draw image features before and after prompting with t-SNE.")
    add = parser.add_argument
    add("--root", metavar="DIR", help="folder that holds the data sets (default: that of the run)")
    add("--split", choices=("train", "val", "test"), default="test", help="default: test")
    add("--subsample", choices=("all", "base", "new"), help="classes (default: those of the run)")
    add("--max-images", type=positive, default=2000, metavar="N", help="drawn at random beyond")
    add("--perplexity", type=float, help="of t-SNE (default: 30, less for few images)")
    add("--seed", type=int, default=0, help="of the choice of images and of t-SNE (default: 0)")
    add("--batch-size", type=positive, default=100, metavar="N", help="images per forward pass")
    helped = "files, or DIR/ for both in it (default: in the run's folder)"
    add("--out", type=stem("tsne"), metavar="STEM|DIR/", help=helped)
    return parser


def images_of_run(args: argparse.Namespace, predictor: Predictor) -> list[Datum]:
    """Return images of the split that the options name, ``--max-images`` of them at most.

    Raises:
        FileNotFoundError, ValueError: the data set is not there, or the split is empty.
    """
    import datasets  # noqa: F401  registers the data sets
    from dassl.data.datasets import build_dataset

    cfg = predictor.cfg.clone()
    if args.root is not None:
        cfg.DATASET.ROOT = args.root
    if args.subsample is not None:
        cfg.DATASET.SUBSAMPLE_CLASSES = args.subsample
    with quietly(args):
        data = build_dataset(cfg)
    items = {"train": data.train_x, "val": data.val, "test": data.test}[args.split]
    if not items:
        raise ValueError(f"--split {args.split}: data set {cfg.DATASET.NAME} has no such images")
    if len(items) > args.max_images:
        chosen = random.Random(args.seed).sample(range(len(items)), args.max_images)
        items = [items[i] for i in sorted(chosen)]
    return items


def features(
    predictor: Predictor, items: Sequence[Datum], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit-norm image features ``(N, embed_dim)`` of frozen CLIP, and with the prompts."""
    import torch
    from tqdm import tqdm

    frozen, prompted = [], []
    upright = predictor.cfg.INPUT.EXIF
    with torch.no_grad():
        for start in tqdm(range(0, len(items), batch_size), desc="features", disable=None):
            part = items[start : start + batch_size]
            batch = torch.stack([predictor.read(item.impath, upright) for item in part])
            batch = batch.to(predictor.device)
            frozen.append(predictor.model.frozen_image_features(batch).cpu())
            prompted.append(predictor.model.image_features(batch).cpu())
    return torch.cat(frozen).numpy(), torch.cat(prompted).numpy()


def layout(points: np.ndarray, perplexity: float | None, seed: int) -> np.ndarray:
    """Lay ``(N, d)`` points out in the plane by t-SNE: ``(N, 2)``.

    Args:
        points: at least 3.
        perplexity: about the number of neighbours that count; 30, or a third of fewer points.
        seed: of the optimisation.

    Raises:
        ValueError: too few points, or a perplexity that is not between 0 and their number.
    """
    from sklearn.manifold import TSNE

    if len(points) < 3:
        raise ValueError(f"t-SNE needs at least 3 images, there are {len(points)}")
    if perplexity is None:
        perplexity = min(30.0, (len(points) - 1) / 3)
    if not 0 < perplexity < len(points):
        raise ValueError(f"--perplexity is {perplexity}: use more than 0, less than {len(points)}")
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(points)


def draw(items: Sequence[Datum], planes: dict[str, np.ndarray], path: str) -> None:
    """Write a PNG with one picture per title of ``planes``, classes in colours."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    names = {item.label: item.classname for item in items}
    colours = matplotlib.colormaps["tab20" if len(names) <= NAMED_CLASSES else "hsv"]
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axis, (title, plane) in zip(figure.subplots(1, len(planes)), planes.items(), strict=True):
        for i, (label, name) in enumerate(sorted(names.items())):
            own = plane[np.array([item.label == label for item in items])]
            colour = colours(i if len(names) <= NAMED_CLASSES else i / len(names))
            axis.scatter(*own.T, s=8, color=colour, label=name)
        axis.set_title(title)
        axis.set(xticks=[], yticks=[])
    if len(names) <= NAMED_CLASSES:
        style: dict[str, Any] = {"loc": "outside right", "markerscale": 2}
        figure.legend(*axis.get_legend_handles_labels(), **style)
    write_png(figure, path)


def run(args: argparse.Namespace) -> None:
    """Write the picture and the table."""
    predictor = load_run(args.run, args)
    items = images_of_run(args, predictor)
    frozen, prompted = features(predictor, items, args.batch_size)
    planes = {
        "frozen CLIP": layout(frozen, args.perplexity, args.seed),
        predictor.cfg.TRAINER.NAME: layout(prompted, args.perplexity, args.seed),
    }
    out = args.out or str(Path(args.run, "tsne"))
    draw(items, planes, f"{out}.png")
    rows = [
        (item.impath, item.label, item.classname, *(f"{x:.4f}" for x in (*before, *after)))
        for item, before, after in zip(items, *planes.values(), strict=True)
    ]
    write_csv(rows, COLUMNS, f"{out}.csv")
    print(f"{len(items)} images: {out}.png, {out}.csv")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
