"""A whole protocol of one or more methods over data sets and seeds, on all GPUs or a cluster.

    python scripts/all.py METHOD [DATASETS] [SEEDS] [KEY VALUE ...]

Lists are words in quotes or with commas between them: "coop mmlop", digits,shapes, "1 2 3". Every
run is one call of run.sh; finished runs are skipped and unfinished ones continued. First a plan is
printed: the runs, those finished already, and the time that others like them took. A run that fails
is tried again, then named at the end with its log; the others are done all the same. Of two sweeps
into one folder, also from two machines, each does the runs that the other does not.

From the environment, besides what run.sh reads:
  PROTOCOL  {protocols}
  SHOTS     fewshot takes several, all among them (default: 1 2 4 8 16)
  TOGETHER  1: one run trains all seeds of a setting in one process (docs/performance.md)
  JOBS      simultaneous runs (default: on GPUs JOBS_PER_GPU for each that is visible, else 1)
  JOBS_PER_GPU  simultaneous runs on each GPU (default: 1); CUDA_VISIBLE_DEVICES chooses among them
  EXECUTOR, CLUSTER, RETRIES  as the options below

If DATA is set, DATASETS defaults to the eleven of the benchmark (xd: those that are not the source;
dg: ImageNet's variants), else to digits and letters, which need no download (xd: from symbols to
digits, letters and shapes; dg: symbols' variants).
docs/clusters.md shows it on one GPU, on several, and on a cluster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import protocols  # noqa: E402  found by the line above
from scripts.sweep import sweep  # noqa: E402
from support.command_line import INTERRUPTED  # noqa: E402
from support.command_line import run as run_command  # noqa: E402
from support.hints import nearest  # noqa: E402

# What is not of the standard library is imported inside the functions: --help is given without.


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, which may stand anywhere among the words."""
    add = parser.add_argument
    add(
        "--executor",
        metavar="NAME",
        help="local: on this machine (default); slurm: as jobs of a cluster; debug: as such jobs "
        "would, but in this process, one by one",
    )
    add("--cluster", metavar="YAML", help="settings of the jobs, as configs/clusters/example.yaml")
    add("--retries", metavar="N", type=int, help="try a run that fails N times again (default: 1)")
    add("--dry-run", action="store_true", help="print the plan only; DRY_RUN=1: and the commands")
    add("--no-wait", action="store_true", help="submit the jobs of a cluster and return")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    lines = [f"{p.name}: {p.title.lower()}" for p in protocols.PROTOCOLS]
    lines[0] += " (default)"
    parser = argparse.ArgumentParser(
        prog="all.sh",
        description=__doc__.format(protocols=("\n" + " " * 12).join(lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    add = parser.add_argument
    add("methods", metavar="METHOD", help="folder of scripts/, or several")
    add("datasets", metavar="DATASETS", nargs="?", default="", help="files of configs/datasets/")
    add("seeds", metavar="SEEDS", nargs="?", default="", help="default: 1 2 3")
    add("opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="for all runs, as in run.sh")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line, whose options may also stand behind the KEY VALUE pairs.

    Raises:
        ValueError: there is no such option.
    """
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="all.sh")
    add_options(options)
    args, rest = options.parse_known_args(argv)
    parser = build_parser()
    known = [name for action in parser._actions for name in action.option_strings]
    for word in rest:
        if word.startswith("--") and word not in known:
            raise ValueError(f"no option {word}{nearest(word, known)}")
    return parser.parse_args(rest, args)


def run(args: argparse.Namespace) -> int:
    """Make all runs that the command line asks for.

    Args:
        args: the parsed command line.

    Returns:
        Exit status: 0, 1 when a run failed, 128 + n when it was stopped by signal n.

    Raises:
        ValueError: for arguments that cannot work.
    """
    try:
        result = sweep(
            args.methods,
            args.datasets,
            args.seeds,
            args.opts,
            executor=args.executor,
            cluster=args.cluster,
            retries=args.retries,
            dry_run=args.dry_run,
            wait=not args.no_wait,
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return int(stop.code or 0)
    if result.counts:
        print(result.summary, flush=True)
    for message in result.failures:
        print(f"error: {message}", file=sys.stderr)
    return 1 if result.failures else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: that of :func:`run`, or 2 for arguments that cannot work.
    """
    return run_command(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
