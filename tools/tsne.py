"""Image features before and after prompting: ``python -m tools.tsne RUN --root DATA``.

Features (unit norm) of the images of one split of the run's data set, by the frozen CLIP and with
the prompts of the run, each laid out in the plane by t-SNE (van der Maaten and Hinton, JMLR 2008;
scikit-learn's, started from principal components, seeded). Writes a PNG with both and a CSV: image,
label, class, frozen_x, frozen_y, prompted_x, prompted_y. The titles say how many of the images each
classifies right. Only neighbourhoods mean something in such a picture; axes, and distances between
far points, do not.
"""

from __future__ import annotations

import argparse
import math
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
    with_defaults,
    write_csv,
    write_png,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dassl.config import CfgNode
    from dassl.data.datasets import Datum
    from trainers import Predictor

COLUMNS = ("image", "label", "class", "frozen_x", "frozen_y", "prompted_x", "prompted_y")

#: classes that are named beside the picture
NAMED_CLASSES = 60
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
#: fewer images, in all or per class, make a picture that says little
FEW_IMAGES, FEW_PER_CLASS = 100, 5


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


def images_of_run(args: argparse.Namespace, cfg: CfgNode) -> tuple[list[Datum], list[str]]:
    """Return images of the split that the options name, and the classes of the data set.

    There are ``--max-images`` of them at most.

    Args:
        args: command line.
        cfg: config of the run.

    Raises:
        FileNotFoundError, ValueError: the data set is not there, or the split is empty.
    """
    from dassl.data.datasets import build_dataset

    cfg = with_defaults(cfg)
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
    return items, list(data.classnames)


def among(predictor: Predictor, classes: Sequence[str], args: argparse.Namespace) -> bool:
    """Let a run classify among the classes of the images; return whether it can."""
    if list(predictor.classnames) == list(classes):
        return True
    try:
        model = load_run(args.run, args, classes).model
    except ValueError:  # a learner with a part for each class
        return False
    predictor.model, predictor.classnames = model, list(classes)
    return True


class Right:
    """Counts the images that frozen CLIP and a run classify right.

    Frozen CLIP has the texts that the run's teacher averages over.
    """

    def __init__(self) -> None:
        self.images = self.frozen = self.own = 0

    def count(self, model: Any, batch: Tensor, features: Tensor, labels: Tensor) -> None:
        """Count a batch: images, their features by frozen CLIP, and their labels."""
        of_frozen = model.logits(features, model.frozen_text_features())
        for name, logits in (("frozen", of_frozen), ("own", model(batch))):
            right = int((logits.argmax(dim=-1).cpu() == labels).sum())
            setattr(self, name, getattr(self, name) + right)
        self.images += len(labels)


def features(
    predictor: Predictor, items: Sequence[Datum], batch_size: int, right: Right | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit-norm image features ``(N, embed_dim)`` of frozen CLIP, and with the prompts.

    Args:
        predictor: of the run.
        items: images.
        batch_size: of them at once.
        right: counts those that are classified right, if the run knows their classes.
    """
    import torch
    from tqdm import tqdm

    frozen, prompted = [], []
    upright = predictor.cfg.INPUT.EXIF
    with torch.no_grad():
        for start in tqdm(range(0, len(items), batch_size), desc="features", disable=None):
            part = items[start : start + batch_size]
            batch = torch.stack([predictor.read(item.impath, upright) for item in part])
            batch = batch.to(predictor.device)
            before = predictor.model.frozen_image_features(batch)
            frozen.append(before.cpu())
            prompted.append(predictor.model.image_features(batch).cpu())
            if right is not None:
                labels = torch.tensor([item.label for item in part])
                right.count(predictor.model, batch, before, labels)
    return torch.cat(frozen).numpy(), torch.cat(prompted).numpy()


def few_images(items: Sequence[Datum]) -> str:
    """Return a warning where there are too few images for a picture that says something."""
    classes = len({item.label for item in items})
    each = len(items) / classes
    if len(items) >= FEW_IMAGES and each >= FEW_PER_CLASS:
        return ""
    return (
        f"only {len(items)} images of {classes} classes: t-SNE shows groups by chance, and says "
        f"little below {FEW_IMAGES} images and {FEW_PER_CLASS} per class"
    )


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


def looks(labels: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return label -> colour and marker.

    Ten classes after each other differ in both, twenty in marker or in light and dark, so that grey
    tells them apart, and as many as there are pairs in marker or colour.
    """
    from results.plots import TONES

    found = {}
    for i, label in enumerate(sorted(set(labels))):
        turn, place = divmod(i, len(MARKERS))
        colours = TONES[(place + turn) % len(TONES)]
        step = place // len(TONES) + turn // len(TONES)
        found[label] = colours[step % len(colours)], MARKERS[place]
    return found


def heading_of(predictor: Predictor, number: int, classes: int, args: argparse.Namespace) -> str:
    """Return which images and classes the pictures show.

    Args:
        predictor: of the run.
        number: of images.
        classes: number of classes that a run classifies among.
        args: command line.
    """
    from results.labels import dataset_title
    from results.record import read

    record = read(args.run)
    title = dataset_title(predictor.cfg, record and record["arguments"])
    part = args.subsample or predictor.cfg.DATASET.SUBSAMPLE_CLASSES
    words = f"all {classes} classes" if part == "all" else f"the {classes} {part} classes"
    return f"{title}: {number:,} {args.split} images of {words}"


def texts_of(predictor: Predictor, classes: int) -> str:
    """Return by which texts the images are classified."""
    templates = predictor.model.teacher_templates
    frozen = (
        f'"{templates[0]}"' if len(templates) == 1 else f"the mean of {len(templates)} templates"
    )
    return (
        f"right: nearest to the text of the class among {classes}; those of frozen CLIP are "
        f"{frozen}, those of {predictor.cfg.TRAINER.NAME} what the run learned"
    )


def draw(
    items: Sequence[Datum],
    planes: dict[str, np.ndarray],
    path: str,
    warning: str = "",
    heading: str = "",
    texts: str = "",
) -> None:
    """Write a PNG with one picture per title of ``planes``, classes in colours and markers.

    Args:
        items: images.
        planes: title -> their places, ``(N, 2)``.
        path: file to write.
        warning: line below the pictures.
        heading: line above them.
        texts: line below them, about what their titles say.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from results.labels import class_title
    from results.plots import is_light

    names = {item.label: item.classname for item in items}
    found = looks(list(names))
    named = len(names) <= NAMED_CLASSES
    columns = math.ceil(len(names) / 30) if named else 0
    figure = Figure(figsize=(11 + 1.8 * columns, 5.9), layout="constrained")
    with matplotlib.rc_context({"text.parse_math": False}):  # names may have dollar signs
        for axis, (title, plane) in zip(
            figure.subplots(1, len(planes)), planes.items(), strict=True
        ):
            for label, name in sorted(names.items()):
                own = plane[np.array([item.label == label for item in items])]
                colour, marker = found[label]
                edge = {"edgecolor": "black" if is_light(colour) else "white", "linewidth": 0.4}
                look: dict[str, Any] = {"color": colour, "marker": marker, **edge}
                axis.scatter(*own.T, s=24, label=class_title(name), **look)
            axis.set_title(title)
            axis.set(xticks=[], yticks=[])
        if named:
            style: dict[str, Any] = {"loc": "outside right", "ncols": columns, "fontsize": 8}
            figure.legend(*axis.get_legend_handles_labels(), **style)
        figure.suptitle(heading, fontsize=11)
        unnamed = "" if named else f"{len(names)} classes, named in the table"
        if words := "\n".join(filter(None, (texts, warning, unnamed))):
            figure.supxlabel(words, fontsize=8, color="0.35")
        write_png(figure, path)


def run(args: argparse.Namespace) -> None:
    """Write the picture and the table."""
    predictor = load_run(args.run, args)
    items, classes = images_of_run(args, predictor.cfg)
    warning = few_images(items)
    right = Right() if among(predictor, classes, args) else None
    frozen, prompted = features(predictor, items, args.batch_size, right)
    titles = ["frozen CLIP", predictor.cfg.TRAINER.NAME]
    if right is not None:
        shares = (100 * number / right.images for number in (right.frozen, right.own))
        titles = [f"{title}: {n:.1f} % right" for title, n in zip(titles, shares, strict=True)]
    else:
        print(
            "Note: no accuracy: the run was trained for other classes than those of the images",
            file=sys.stderr,
        )
    before, after = (layout(points, args.perplexity, args.seed) for points in (frozen, prompted))
    planes = dict(zip(titles, (before, after), strict=True))
    out = args.out or str(Path(args.run, "tsne"))
    heading = heading_of(predictor, len(items), len(classes), args)
    texts = texts_of(predictor, len(classes)) if right is not None else ""
    draw(items, planes, f"{out}.png", warning, heading, texts)
    rows = [
        (item.impath, item.label, item.classname, *(f"{x:.4f}" for x in (*before, *after)))
        for item, before, after in zip(items, *planes.values(), strict=True)
    ]
    write_csv(rows, COLUMNS, f"{out}.csv")
    if warning:
        print(f"Note: {warning}", file=sys.stderr)
    print(f"{len(items)} images: {out}.png, {out}.csv")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
