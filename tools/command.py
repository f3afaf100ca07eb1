"""What the commands on a finished run share; torch is imported when it is needed."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.command_line import add_traceback, positive
from support.files import as_text, read_bytes, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from dassl.config import CfgNode
    from trainers import Predictor


def stem(default: str) -> Callable[[str], str]:
    """Return the type of an argument that names a picture and its table, which share a stem.

    The name of either file may be given, or the path of a folder that ends as such: with a slash.

    Args:
        default: stem of the files in such a folder.
    """

    def read(text: str) -> str:
        text = text.removesuffix(".png").removesuffix(".csv")
        is_folder = os.path.basename(text) in ("", os.curdir, os.pardir)
        return os.path.join(text, default) if is_folder else text

    return read


def read_names(given: str) -> list[str]:
    """Read class names from a text file, one per line without blank ones, or take those given.

    Args:
        given: path of the file, or the names themselves with commas between them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no name, a name twice, or not UTF-8 text; names the file.
    """
    from datasets.annotations import check_name

    if os.path.exists(given):
        content = read_bytes(given)
        try:
            words = as_text(content).replace("\r", "\n").split("\n")
        except ValueError as error:
            raise ValueError(f"--classes: {given} is {error}: save it as UTF-8") from error
    elif "," in given:
        words = given.split(",")
    else:
        raise FileNotFoundError(
            f"--classes: no file {given}; a file has one name per line, and names given here have "
            "commas between them, as in banana,apple"
        )
    names = [word.strip() for word in words if word.strip()]
    if not names:
        raise ValueError(f"--classes: {given} holds no class name")
    for name in names:
        check_name(name, f"--classes: {given}")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"--classes: {given} names {', '.join(twice)} more than once")
    return names


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add the option that :func:`read_names` reads."""
    parser.add_argument(
        "--classes",
        metavar="FILE|NAME,NAME",
        help="class names: a file with one per line, or the names (default: those of the run)",
    )


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    """Add the option that goes on without files that are no images."""
    helped = "name files that are no images and leave them out"
    parser.add_argument("--skip-bad", action="store_true", help=helped)


def read_images(
    paths: Sequence[str], read: Callable[[str], Tensor], skip_bad: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield images with what ``read`` makes of them.

    With ``skip_bad``, files that are no images are named on stderr and left out, and counted after
    the last one.

    Raises:
        ValueError: without ``skip_bad``, at the first such file.
    """
    bad = 0
    for path in paths:
        try:
            image = read(path)
        except (OSError, ValueError) as error:
            if not skip_bad:
                raise ValueError(f"{error}; --skip-bad leaves such files out") from error
            print(f"skipped: {error}", file=sys.stderr)
            bad += 1
        else:
            yield path, image
    if bad:
        print(f"skipped {bad} of {len(paths)} files", file=sys.stderr)


def find_images(words: Sequence[str]) -> list[str]:
    """Return the given files: single ones as they are, the images of folders sorted by path.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without images.
    """
    found = []
    for word in words:
        if os.path.isdir(word):
            found += images_below(Path(word))
        elif os.path.exists(word):
            found.append(word)
        else:
            raise FileNotFoundError(f"no such image or folder: {word}")
    return found


def images_below(folder: Path) -> list[str]:
    """Return the paths of the images below a folder, sorted; hidden ones are left out.

    Photos that cannot be decoded here are left out with a note on stderr.
    """
    from datasets.imagefolder import EXTENSIONS, undecoded_photos

    def hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    files = sorted(str(p) for p in folder.rglob("*") if p.is_file() and not hidden(p))
    images = [path for path in files if Path(path).suffix.lower() in EXTENSIONS]
    photos = undecoded_photos(files)
    if not images:
        reason = photos or ", ".join(EXTENSIONS)
        raise FileNotFoundError(f"the folder {folder} has no images ({reason})")
    if photos:
        print(f"Note: {photos}", file=sys.stderr)
    return images


def add_common(parser: argparse.ArgumentParser, epoch: bool = True) -> None:
    """Add the options that every command on a run takes.

    Args:
        parser: of the command.
        epoch: whether it loads what the run learned, of which there may be several epochs.
    """
    add = parser.add_argument
    if epoch:
        add("--load-epoch", type=positive, metavar="N", help="epoch (default: the one tested)")
    add("--backbone", metavar="NAME", help="CLIP, by name or file (default: that of the run)")
    add("--device", metavar="NAME", help="e.g. cpu or cuda:1 (default: CUDA when available)")
    add("--verbose", action="store_true", help="print what is loaded as well, to stderr")
    add_traceback(parser)


def run_parser(description: str, several: bool = False) -> argparse.ArgumentParser:
    """Return a parser of a command on a run, whose folder comes first, as ``run``.

    Args:
        description: of the command.
        several: take one or more folders, a list.
    """
    parser = argparse.ArgumentParser(description=description)
    count = "+" if several else None
    parser.add_argument("run", nargs=count, metavar="RUN", help="output folder of a training run")
    add_common(parser)
    return parser


@contextlib.contextmanager
def quietly(args: argparse.Namespace) -> Iterator[None]:
    """Send what a model prints on the way to a result to stderr, with ``--verbose``, or nowhere."""
    from dassl.utils import Logger, logger

    level = logger.VERBOSE if args.verbose else logger.QUIET
    with contextlib.redirect_stdout(Logger(console=sys.stderr, level=level)):
        yield


def load_run(
    run: str,
    args: argparse.Namespace,
    classnames: Sequence[str] | None = None,
    precision: str | None = None,
) -> Predictor:
    """Load the predictor of a run folder, as the common options say."""
    from trainers import Predictor

    with quietly(args):
        return Predictor.load(
            run, classnames, args.load_epoch, args.device, args.backbone, precision
        )


def with_defaults(cfg: CfgNode) -> CfgNode:
    """Return the config of a run, with defaults for keys that its older version did not have."""
    import datasets
    from adaptation.config import extend_cfg
    from dassl.config import get_cfg_default

    defaults, filled = get_cfg_default(), cfg.clone()
    extend_cfg(defaults)
    datasets.extend_cfg(defaults)

    def fill(node: Any, others: Any) -> None:
        for key, value in others.items():
            if key not in node:
                node[key] = value
            elif isinstance(value, Mapping) and isinstance(node[key], Mapping):
                fill(node[key], value)

    fill(filled, defaults)
    return filled


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield the temporary name of a file that appears complete or not at all.

    Raises:
        OSError: the file cannot be written; says so and why.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, os.fspath(path)) else ""
        raise OSError(f"cannot write {path}: {error.strerror or error}{where}") from error


def write_csv(rows: Sequence[Sequence], columns: Sequence[str], path: str | Path) -> None:
    """Write a table; the file appears complete or not at all."""
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_png(figure: Figure, path: str | Path) -> None:
    """Write a matplotlib figure; the file appears complete or not at all."""
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
