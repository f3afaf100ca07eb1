"""What a tested run gets right and wrong: ``python -m tools.inspect_run RUN``.

Reads the predictions that the run kept and writes a folder:

* ``index.html``: all of it as one page, which opens alone and without a network;
* ``classes.csv``: accuracy of each class, beside zero-shot CLIP's;
* ``confusion.csv`` and ``confusion.png``: numbers of images by true and predicted class;
* ``misclassified.csv``: every image that was misclassified, the most confident mistake first;
* ``misclassified_1.png``, ...: the first of them as contact sheets.

Zero-shot CLIP classifies the same images with the run's backbone and templates: from the
predictions of such a run beside this one where there are some, else it is computed, for which the
images have to be there.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.command_line import positive, run_command

from .command import add_common, quietly, write_csv, write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from dassl.config import CfgNode
    from results.inspection import Inspection, Mistake
    from results.predictions import Predictions
    from results.report.one_run import Photo

#: registry name of the method that nothing is trained for
ZERO_SHOT = "ZeroshotCLIP"
#: settings that decide what zero-shot CLIP predicts for an image
DECISIVE = (
    *("MODEL.BACKBONE.NAME", "DATASET.TEMPLATES", "INPUT.SIZE", "INPUT.INTERPOLATION"),
    *("INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD", "INPUT.EXIF"),
)
#: images of a contact sheet, in a line and in all
IN_LINE, ON_SHEET = 6, 24
#: largest side of a picture on the page, in pixels
SIDE = 224
#: absent images that are named one by one
MOST_NAMED = 5
SHEET = "misclassified_{}.png"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Show what a tested run gets right and wrong, and zero-shot CLIP beside it."
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run that was tested")
    either = parser.add_mutually_exclusive_group()
    helped = "zero-shot run on the same images (default: one beside RUN, else computed)"
    either.add_argument("--zero-shot", metavar="RUN", help=helped)
    either.add_argument("--no-zero-shot", action="store_true", help="leave zero-shot CLIP out")
    add("--root", metavar="DIR", help="folder that holds the data sets (default: that of the run)")
    helped = "misclassified images to show (default: 120); the table has all"
    add("--max-images", type=positive, default=120, metavar="N", help=helped)
    add("--batch-size", type=positive, default=100, metavar="N", help="images per forward pass")
    add("--out", metavar="DIR", help="folder (default: inspection/ in the run's folder)")
    add_common(parser, epoch=False)
    return parser


# --- the run --------------------------------------------------------------------------------------


def read_run(folder: str | Path) -> tuple[dict[str, Any], Predictions]:
    """Return record and predictions of a tested run.

    Raises:
        FileNotFoundError: no such folder, or a file that it lacks; says what to do.
        ValueError: the run was not tested, or a file is damaged.
    """
    from adaptation.checkpoints import bundle_instead
    from results import predictions, record
    from results.logs import BadLog

    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the run folder {folder} does not exist")
    try:
        found = record.read(folder)
        if found is None:
            raise FileNotFoundError(
                bundle_instead(folder)
                or f"{folder} is no folder of a finished run: it has no {record.FILE}; name the "
                "folder that train.py --output-dir named"
            )
        if found["result"] is None:
            raise ValueError(
                f"{folder}: the run was not tested ({found['not_tested']}): test it with "
                f"train.py --eval-only --model-dir {folder}"
            )
        kept = predictions.read(folder, found)
    except BadLog as error:
        raise ValueError(str(error)) from error
    if kept is None:
        raise FileNotFoundError(
            f"{folder} has no {predictions.FILE}: test the run again with "
            "TEST.KEEP_PREDICTIONS always"
        )
    return found, kept


def image_paths(kept: Predictions, record: dict[str, Any], root: str | None) -> list[str]:
    """Return the paths of the tested images, empty where they are unknown.

    Args:
        kept: predictions with paths below the data root, or absolute ones.
        record: of the run.
        root: folder that holds the data sets; None for that of the run.
    """
    folder = Path(root or record["config"]["DATASET"]["ROOT"]).expanduser().absolute()
    return [str(folder / path) for path in kept.images]


# --- zero-shot CLIP -------------------------------------------------------------------------------


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    from dassl.config import leaves

    return {key: value for key, value in leaves(record["config"]) if key in DECISIVE}


def zero_shot_beside(
    run: str | Path, record: dict[str, Any], kept: Predictions
) -> tuple[Path, Predictions] | None:
    """Return a zero-shot run beside a run, on the same images with the same settings, if any.

    Runs of the scripts' layout are searched for below its top, others beside the run's folder.

    Args:
        run: folder.
        record: of the run.
        kept: its predictions.
    """
    from protocols import read_folder
    from results import predictions
    from results import record as records
    from results.inspection import are_alike
    from results.logs import BadLog
    from results.runs import layout_root

    folder = Path(run).absolute()
    top = layout_root(folder)
    if top is None:
        candidates = sorted(folder.parent.glob(f"*/{predictions.FILE}"))
    else:
        found = sorted(top.rglob(predictions.FILE))
        places = {path: read_folder(path.parent.relative_to(top).as_posix()) for path in found}
        candidates = [
            path for path, place in places.items() if place and place[1]["trainer"] == ZERO_SHOT
        ]
    for path in candidates:
        if path.parent == folder:
            continue
        try:
            other = records.read(path.parent)
            if other is None or other["method"] != ZERO_SHOT:
                continue
            if _settings(other) != _settings(record):
                continue
            read = predictions.read(path.parent, other)
        except BadLog:
            continue
        if read is not None and are_alike(kept, read):
            return path.parent, read
    return None


def settings_of_test(record: dict[str, Any], args: argparse.Namespace) -> CfgNode:
    """Return a config with the backbone, the data set and the test images of a record.

    Raises:
        ValueError: the run's data set is not registered here, or a value has another type.
    """
    import datasets
    from adaptation.config import extend_cfg
    from dassl.config import get_cfg_default, leaves
    from dassl.data.datasets import DATASET_REGISTRY

    cfg = get_cfg_default()
    extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    known = dict(leaves(cfg))
    for section in ("MODEL", "INPUT", "DATASET"):
        for key, value in leaves({section: record["config"][section]}):
            if key in known:
                cfg.merge_from_list([key, value])
    cfg.TRAINER.NAME = ZERO_SHOT
    if args.backbone is not None:
        cfg.MODEL.BACKBONE.NAME = args.backbone
    if args.root is not None:
        cfg.DATASET.ROOT = args.root
    if cfg.DATASET.NAME not in DATASET_REGISTRY:
        raise ValueError(
            f"data set {cfg.DATASET.NAME} is not registered here, so its template is unknown: "
            "name a zero-shot run (--zero-shot), or leave it out (--no-zero-shot)"
        )
    return cfg


def compute_zero_shot(
    kept: Predictions, paths: Sequence[str], record: dict[str, Any], args: argparse.Namespace
) -> Predictions:
    """Classify the tested images by zero-shot CLIP, with the run's backbone and templates.

    Args:
        kept: predictions of the run.
        paths: of the images.
        record: of the run.
        args: command line.

    Raises:
        OSError, ValueError: an image cannot be read, or the backbone not be loaded.
    """
    import torch
    from tqdm import tqdm

    from adaptation.templates import given_templates
    from adaptation.trainer import check_backbone, load_clip
    from dassl.data.datasets import build_dataset
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import choose_device
    from results.predictions import Predictions
    from trainers import Predictor

    cfg, device = settings_of_test(record, args), choose_device(args.device)
    check_backbone(cfg)
    with quietly(args):
        entries = cfg.DATASET.TEMPLATES
        # files of templates lie in the data set's folder
        files = any("{" not in entry for entry in entries)
        templates = given_templates(entries, build_dataset(cfg).dataset_dir if files else "")
        clip = load_clip(cfg, device)
        model = TRAINER_REGISTRY.get(ZERO_SHOT).build_classifier(
            cfg, clip, list(kept.classes), templates
        )
        predictor, logits = Predictor(model, cfg, kept.classes, device), []
    with torch.no_grad():
        for start in tqdm(range(0, len(paths), args.batch_size), desc="zero-shot", disable=None):
            some = paths[start : start + args.batch_size]
            batch = torch.stack([predictor.read(path, cfg.INPUT.EXIF) for path in some])
            logits.append(model(batch.to(device)).float().cpu())
    return Predictions(
        torch.cat(logits).numpy(), kept.labels, kept.classes, kept.images, kept.split
    )


def find_zero_shot(
    kept: Predictions, paths: Sequence[str], record: dict[str, Any], args: argparse.Namespace
) -> tuple[Predictions | None, str]:
    """Return zero-shot CLIP's predictions of the tested images, and a line that says whence.

    Args:
        kept: predictions of the run.
        paths: of its images.
        record: of the run.
        args: command line.

    Raises:
        ValueError: the run that ``--zero-shot`` names is of other images or classes.
    """
    from results.inspection import are_alike

    if args.no_zero_shot or record["method"] == ZERO_SHOT:
        return None, ""
    if args.zero_shot is not None:
        _, found = read_run(args.zero_shot)
        if not are_alike(kept, found):
            raise ValueError(
                f"--zero-shot: {args.zero_shot} and {args.run} were tested on different images "
                "or classes"
            )
        return found, f"zero-shot CLIP's predictions are those of the run {args.zero_shot}"
    if beside := zero_shot_beside(args.run, record, kept):
        folder, found = beside
        return found, f"zero-shot CLIP's predictions are those of the run {folder}"
    if not paths:
        return None, "zero-shot CLIP is left out: the predictions do not name their images"
    absent = sum(not Path(path).is_file() for path in paths)
    if absent:
        return None, f"zero-shot CLIP is left out: {absent} of {len(paths)} images are not there"
    found = compute_zero_shot(kept, paths, record, args)
    return found, "zero-shot CLIP: computed for this page, with the run's backbone and templates"


# --- pictures -------------------------------------------------------------------------------------


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Return an image whose larger side is at most ``side``; a small one is enlarged, in steps."""
    from PIL import Image

    largest = max(image.size)
    if 2 * largest <= side:
        times = side // largest
        size = (image.width * times, image.height * times)
        return image.resize(size, Image.Resampling.NEAREST)
    image = image.copy()
    image.thumbnail((side, side))
    return image


def read_photos(
    mistakes: Sequence[Mistake], paths: Sequence[str], upright: bool
) -> list[tuple[Mistake, Image.Image | None, str]]:
    """Read the images of mistakes: each with its picture, or with what is wrong with the file.

    Args:
        mistakes: to read the images of.
        paths: of all tested images; empty if unknown.
        upright: turn photos as their EXIF orientation says.
    """
    from dassl.utils import read_image
    from dassl.utils.tools import ImageError

    found: list[tuple[Mistake, Image.Image | None, str]] = []
    for one in mistakes:
        if not paths:
            found.append((one, None, "the predictions do not name their images"))
            continue
        try:
            image = read_image(paths[one.number], upright=upright)
        except ImageError as error:
            found.append((one, None, str(error)))
        else:
            found.append((one, fitted(image, SIDE), ""))
    return found


def data_uri(image: Image.Image) -> str:
    """Return an image as a data URI, for a page that opens alone."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(photos: Sequence[tuple[Mistake, Image.Image | None, str]], title: str) -> Figure:
    """Draw images with true and predicted class and probability below each."""
    from matplotlib.figure import Figure

    from results.labels import class_title

    def short(name: str, most: int) -> str:
        name = class_title(name)
        return f"{name[: most - 1]}…" if len(name) > most else name

    lines = -(-len(photos) // IN_LINE)
    wide = 2.1
    side = wide - 0.2
    # no taller than the tallest image, so that photos in landscape leave no gaps
    shares = (1.0 if image is None else image.height / max(image.size) for _, image, _ in photos)
    tallest = side * max(shares)
    high = tallest + 0.85
    figure = Figure(figsize=(wide * IN_LINE, high * lines + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, wide * IN_LINE), ylim=(high * lines + 0.4, 0))
    axes.set_axis_off()
    axes.text(0.1, 0.25, title, fontsize=11, va="center")
    for place, (one, image, _) in enumerate(photos):
        left, top = wide * (place % IN_LINE) + 0.1, high * (place // IN_LINE) + 0.45
        if image is None:
            axes.text(
                left + side / 2, top + tallest / 2, "no image file", ha="center", color="#8a5300"
            )
        else:
            scale = side / max(image.size)
            width, height = (length * scale for length in image.size)
            x, y = left + (side - width) / 2, top + tallest - height  # close to its words
            axes.imshow(image, extent=(x, x + width, y + height, y), aspect="auto")
        words: list[tuple[str, str, float | None, str]] = [
            ("true", one.true, one.of_true, "black"),
            ("pred.", one.predicted, one.probability, "#ad2419"),
        ]
        if one.zero_shot:
            words.append(("zero-shot", one.zero_shot, None, "0.4"))
        for number, (head, name, share, colour) in enumerate(words):
            tail = "" if share is None else f" {100 * share:.0f} %"
            text = f"{head}: {short(name, 27 - len(head) - len(tail))}{tail}"
            height = top + tallest + 0.14 + 0.17 * number
            axes.text(left, height, text, fontsize=8, color=colour, va="center")
    axes.set(xlim=(0, wide * IN_LINE), ylim=(high * lines + 0.4, 0))
    return figure


def write_sheets(
    photos: Sequence[tuple[Mistake, Image.Image | None, str]], folder: Path, total: int, run: str
) -> Iterator[str]:
    """Write contact sheets and yield their names; those of an earlier, longer list go.

    Args:
        photos: to show.
        folder: of the files.
        total: number of all mistakes.
        run: what the reader calls it.
    """
    for number, start in enumerate(range(0, len(photos), ON_SHEET), start=1):
        some = photos[start : start + ON_SHEET]
        which = f"misclassified {start + 1} to {start + len(some)} of {total}"
        title = f"{run}: {which}, most confident first"
        name = SHEET.format(number)
        write_png(contact_sheet(some, title), folder / name)
        yield name
    kept = -(-len(photos) // ON_SHEET)
    while (old := folder / SHEET.format(kept + 1)).is_file():
        old.unlink()
        kept += 1


# --- the command ----------------------------------------------------------------------------------


def absent_images(photos: Sequence[tuple[Mistake, Any, str]], paths: Sequence[str]) -> list[str]:
    """Return a line that names the images of mistakes that cannot be shown; none if there are."""
    lacking = [one for one, image, _ in photos if image is None]
    if not lacking or not paths:
        return []
    names = ", ".join(paths[one.number] for one in lacking[:MOST_NAMED])
    more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
    return [f"images that cannot be read: {names}{more} (--root names the folder of the data sets)"]


def write_all(
    folder: Path,
    record: dict[str, Any],
    inspection: Inspection,
    paths: Sequence[str],
    notes: list[str],
    args: argparse.Namespace,
) -> None:
    """Write tables, pictures and the page.

    Args:
        folder: of the files.
        record: of the run.
        inspection: of its predictions.
        paths: of the tested images.
        notes: what the reader has to know; gets further lines.
        args: command line.
    """
    import matplotlib

    from results.inspection import CLASS_COLUMNS, MISTAKE_COLUMNS, confusion_picture
    from results.labels import dataset_title
    from results.report.data_sets import MOST_CONFUSED
    from results.report.one_run import Photo, write_one_run

    own = inspection.own
    write_csv(list(inspection.class_rows()), CLASS_COLUMNS, folder / "classes.csv")
    write_csv(list(inspection.mistake_rows()), MISTAKE_COLUMNS, folder / "misclassified.csv")
    files = ["classes.csv", "misclassified.csv"]
    shown = inspection.mistakes[: args.max_images]
    photos = read_photos(shown, paths, bool(record["config"]["INPUT"].get("EXIF")))
    notes += absent_images(photos, paths)
    data = dataset_title(record["config"], record["arguments"])
    name = f"{record['method']} on {data}"
    title = f"{name}: {own.accuracy:.2f} % of {len(own.labels):,} images"
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the page has all letters
        if len(own.classes) <= MOST_CONFUSED:
            header = ["true class \\ predicted class", *own.classes]
            write_csv(list(inspection.confusion_rows()), header, folder / "confusion.csv")
            picture = confusion_picture(inspection.matrix, own.classes, title)
            write_png(picture, folder / "confusion.png")
            files += ["confusion.csv", "confusion.png"]
        else:
            notes.append(f"no confusion matrix: there are more than {MOST_CONFUSED} classes")
        files += write_sheets(photos, folder, len(inspection.mistakes), name)
    pictures: list[Photo] = [
        Photo(one, data_uri(image) if image else "", problem) for one, image, problem in photos
    ]
    write_one_run(folder / "index.html", Path(args.run), record, inspection, pictures, files, notes)


def run(args: argparse.Namespace) -> None:
    """Write the folder, and print the numbers."""
    from results.inspection import Inspection

    record, kept = read_run(args.run)
    paths = image_paths(kept, record, args.root)
    zero_shot, whence = find_zero_shot(kept, paths, record, args)
    inspection, notes = Inspection(kept, zero_shot), [whence] if whence else []
    folder = Path(args.out or Path(args.run, "inspection"))
    write_all(folder, record, inspection, paths, notes, args)
    print(f"{record['method']}: {kept.accuracy:.2f} % of {len(kept.labels)} images")
    if zero_shot is not None:
        print(f"zero-shot CLIP: {zero_shot.accuracy:.2f} % of the same images")
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    print(f"{len(inspection.mistakes)} misclassified images: {folder / 'index.html'}")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
