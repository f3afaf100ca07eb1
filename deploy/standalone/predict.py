"""Label pictures: python predict.py IMAGE ... (needs onnxruntime, numpy and Pillow)."""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # not there with python -I

from bundle import Bundle  # noqa: E402


def main():
    """Print the most probable classes of every picture; exit with status 2 at a bad one."""
    parser = argparse.ArgumentParser(description="Print the most probable classes of pictures.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes per image (5)")
    parser.add_argument("--classes", metavar="FILE", help="other class names, one per line")
    args, path = parser.parse_args(), "--classes"
    try:
        bundle = Bundle(HERE)
        if args.classes:
            lines = Path(args.classes).read_text("utf-8").splitlines()
            bundle.set_classes([line.strip() for line in lines if line.strip()])
        for path in args.images:
            (found,) = bundle.probabilities(bundle.read(path)[None])
            print(path)
            for index in (-found).argsort(kind="stable")[: args.top_k]:
                print(f"{100 * found[index]:9.2f} %  {bundle.labels[index].replace('_', ' ')}")
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        print(f"error: {path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
