"""Label pictures: python predict.py IMAGE ... (needs onnxruntime, numpy and Pillow)."""

import argparse
import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # not there with python -I

from bundle import Bundle  # noqa: E402
from PIL import Image, UnidentifiedImageError  # noqa: E402

SUFFIXES = ".jpg .jpeg .jfif .png .ppm .pgm .bmp .tif .tiff .webp .gif".split()
COLUMNS = ["image", "rank", "label", "probability", "rejected", "best_label", "best_probability"]


def find(path):
    """Return a file, or the pictures below a folder, sorted; hidden ones are left out."""
    found = [path] if path.exists() else []
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
        found = sorted(f for f in files if "/." not in f"/{f.relative_to(path).as_posix()}")
    if not found:
        raise FileNotFoundError("no such image or folder, or no images in it")
    return found


def read_names(text):
    """Read class names from a file, one per line, or take those given with commas between them."""
    given = "," in text and not Path(text).exists()
    names = text.split(",") if given else Path(text).read_text("utf-8").splitlines()
    return [name.strip() for name in names if name.strip()]


def explain(path, error):
    """Say what is wrong with a file that cannot be read, and what to do about it."""
    remedy = "replace it by a sound copy, or remove it"
    if isinstance(error, PermissionError):
        reason = "permission denied"
    elif isinstance(error, Image.DecompressionBombError):
        reason = f"{error} Make it smaller"
    elif not path.stat().st_size:
        reason = f"the file is empty: {remedy}"
    elif isinstance(error, UnidentifiedImageError):
        reason = f"it is damaged, not an image, or of a kind that Pillow does not know: {remedy}"
    elif isinstance(error, ValueError):  # pixels that cannot be converted
        reason = str(error)
    else:
        reason = f"{error}; the file is damaged: {remedy}"
    return f'cannot read image "{path}": {reason}'


def show(path, labels, args):
    """Print the labels of a picture that are probable enough; without any it is rejected."""
    best, enough = labels[0], [label for label in labels if label[1] >= args.min_probability]
    rows = [(path, rank, *label, "no", *best) for rank, label in enumerate(enough, start=1)]
    if args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        return writer.writerows(rows or [(path, None, None, None, "yes", *best)])
    print(path)
    for name, share in enough:
        print(f"{100 * share:9.2f} %  {name.replace('_', ' ')}")
    if not enough:
        shown = f"{best[0].replace('_', ' ')} has {100 * best[1]:.2f} %"
        print(f"   rejected: no class reaches {100 * args.min_probability:g} %; {shown}")


def main():
    """Print the most probable classes of every picture; exit with status 2 at a bad one."""
    parser = argparse.ArgumentParser(description="Print the most probable classes of pictures.")
    add, at, bad, paths = parser.add_argument, HERE, 0, []
    add("images", nargs="+", type=Path, metavar="IMAGE", help="image files, and folders of them")
    add("--top-k", type=int, default=5, metavar="K", help="classes per image (5)")
    helped = "show the classes that reach P, 0 to 1; an image without any is rejected"
    add("--min-probability", type=float, default=0.0, metavar="P", help=helped)
    add("--csv", action="store_true", help=f"a table: {', '.join(COLUMNS)}")
    add("--skip-bad", action="store_true", help="name files that are no images and leave them out")
    helped, fixed = "other class names: a file with one per line, or the names", ""
    if not json.loads((HERE / "bundle.json").read_text("utf-8"))["text_encoder"]:
        fixed = "the classes of this bundle are fixed: export it with --text-encoder to choose them"
        helped = argparse.SUPPRESS
    add("--classes", metavar="FILE|NAME,NAME", help=helped)
    args = parser.parse_args()
    if args.top_k < 1 or not 0 <= args.min_probability <= 1:
        parser.error("--top-k is a whole number from 1 on, --min-probability one from 0 to 1")
    if args.classes and fixed:
        parser.error(f"--classes: {fixed}")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        bundle = Bundle(HERE)
        for at in args.images:
            paths += find(at)
        if args.classes:
            at = args.classes
            bundle.set_classes(read_names(at))
        if args.csv:
            print(",".join(COLUMNS))
        for at in paths:
            try:
                picture = bundle.read(at)
            except Exception as error:  # Pillow raises nearly anything for a damaged file
                said = explain(at, error)
                if not args.skip_bad:
                    print(f"error: {said}; --skip-bad leaves such files out", file=sys.stderr)
                    return 2
                print(f"skipped: {said}", file=sys.stderr)
                bad += 1
                continue
            (found,) = bundle.probabilities(picture[None])
            order = (-found).argsort(kind="stable")[: args.top_k]
            show(at, [(bundle.labels[index], float(found[index])) for index in order], args)
    except Exception as error:
        print(f"error: {at}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    if bad:
        print(f"skipped {bad} of {len(paths)} files", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
