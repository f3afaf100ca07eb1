"""Label pictures: python predict.py IMAGE ... (needs onnxruntime, numpy and Pillow)."""

import argparse
import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # not there with python -I

from bundle import Bundle  # noqa: E402

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
    if json.loads((HERE / "bundle.json").read_text("utf-8"))["text_encoder"]:
        helped = "other class names: a file with one per line, or the names"
        add("--classes", metavar="FILE|NAME,NAME", help=helped)
    parser.set_defaults(classes=None)
    args = parser.parse_args()
    if args.top_k < 1 or not 0 <= args.min_probability <= 1:
        parser.error("--top-k is a whole number from 1 on, --min-probability one from 0 to 1")
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
                (found,) = bundle.probabilities(bundle.read(at)[None])
            except Exception as error:  # Pillow raises nearly anything for a damaged file
                if not args.skip_bad:
                    raise
                print(f"skipped: {at}: {error}", file=sys.stderr)
                bad += 1
                continue
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
