"""Download, verify and lay out data sets, or check those that are there.

    python -m datasets.prepare dtd oxford_pets --root DATA     fetch what is missing, then check
    python -m datasets.prepare all --root DATA --check         check only, without the network
    python -m datasets.prepare mybirds --root DATA --check     read and count one's own images
    python -m datasets.prepare --list                          addresses and checksums

Names are those of ``configs/datasets/``; ``all`` stands for every data set with a source. The files
of each data set are listed in ``datasets/sources.yaml``; docs/datasets.md describes layout and
options. The command can be repeated: finished steps are skipped, a broken-off transfer goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from support import command_line

from .preparation.fetching import Options, obtain
from .preparation.inspection import (
    GENERATED,
    INCOMPLETE,
    MISSING,
    READY,
    UNUSABLE,
    Report,
    dataset_class,
    inspect,
    inspect_without_source,
    is_there,
)
from .preparation.sources import SOURCES, Source, choose, read_sources
from .preparation.unpacking import lay_out

# other packages are imported inside the functions, so that --help and --list answer at once

DOWNLOADS = "downloads"
#: errors of one file, after which the others go on
FAILURES = (RuntimeError, ValueError, OSError)


def prepare(stem: str, source: Source, root: Path, options: Options) -> Report:
    """Fetch and lay out what a data set lacks.

    Args:
        stem: its name.
        source: its files.
        root: data root.
        options: how to fetch them.

    Returns:
        what is there afterwards, with a step for each file that could not be had.

    Raises:
        RuntimeError: another process is preparing this data set.
        OSError: the data root cannot be written.
    """
    import filelock

    downloads = root / DOWNLOADS
    (downloads / stem).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(downloads / stem / ".lock", timeout=0)
    try:
        with lock:
            return _prepare(stem, source, root, options)
    except filelock.Timeout as error:
        raise RuntimeError(f"another process is preparing {stem} in {root}") from error


def _prepare(stem: str, source: Source, root: Path, options: Options) -> Report:
    report = inspect(stem, source, root)
    if report.state in (READY, UNUSABLE):
        return report
    cls = dataset_class(stem)
    folder, steps = root / cls.dataset_dir, []
    for file in source.files:
        superseded = report.state == GENERATED and cls.split_file in file.place
        if all(is_there(folder / path) for path in file.place) and not superseded:
            continue
        path = root / DOWNLOADS / file.file
        try:
            obtain(file, root / DOWNLOADS, options)
            if superseded and cls.split_file is not None:
                split = folder / cls.split_file
                shutil.copyfile(split, split.with_suffix(".generated.json"))
            lay_out(file, path, folder)
            if options.delete_archives and file.is_archive:
                path.unlink()
        except OSError as error:
            steps.append(
                f"{file.name} cannot be stored: {error}. What was fetched is kept: free space, or "
                "see to the folder's permissions, and run the command again"
            )
        except FAILURES as error:
            steps.append(f"{file.name}: {error}")
        else:
            continue
        print(f"  error: {steps[-1]}", file=sys.stderr, flush=True)
    report = inspect(stem, source, root)
    report.steps = steps
    return report


def _inspect_without_source(stem: str, root: Path) -> Report:
    from .preparation.own_images import inspect_own, is_own

    report = inspect_without_source(stem)
    return inspect_own(stem, root) if report.state == MISSING and is_own(stem) else report


def seconds(text: str) -> float:
    """Read a positive, finite number; ValueError if it is not one."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Download, verify and lay out data sets, or check those that are there.",
        epilog="Exit status: 0 all ready, 1 something is not, 2 wrong arguments. The command can "
        "be repeated: finished steps are skipped and broken-off transfers are resumed.",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="name as in configs/datasets/, or all")
    add("--root", metavar="DIR", help="folder of the data sets (default: $DATA, else data)")
    add("--check", action="store_true", help="only say what is there; needs no network")
    add("--list", action="store_true", help="print addresses and checksums and do nothing")
    add("--mirror", metavar="URL", help="try URL/<data set>/<file> before the official addresses")
    add("--sources", metavar="YAML", help="entries that replace those of datasets/sources.yaml")
    add("--timeout", type=seconds, metavar="S", default=30.0, help="of a silent server; 30 seconds")
    add("--delete-archives", action="store_true", help="delete archives once unpacked")
    command_line.add_traceback(parser)
    return parser


def _listing(stems: Sequence[str], sources: dict[str, Source]) -> str:
    from tabulate import tabulate

    rows = [
        [
            stem,
            file.file,
            "\n".join(file.addresses) or "by hand",
            file.md5 or "no published checksum",
        ]
        for stem in stems
        for file in sources[stem].files
    ]
    return tabulate(rows, ["data set", "file", "addresses", "MD5"], tablefmt="simple")


def _table(reports: Sequence[Report]) -> str:
    from tabulate import tabulate

    rows = [
        [
            report.stem,
            f"{report.state}: {report.detail}" if report.detail else report.state,
            *("" if n is None else f"{n:,}" for n in (report.classes, *report.images)),
        ]
        for report in reports
    ]
    return tabulate(
        rows,
        ["data set", "state", "classes", "train", "val", "test"],
        tablefmt="simple",
        maxcolwidths=[None, 64, None, None, None, None],
        colalign=("left", "left", "right", "right", "right", "right"),
        disable_numparse=True,
    )


def _next_steps(reports: Sequence[Report], sources: dict[str, Source], root: Path) -> str:
    """Say what to do about data sets that are not ready: by hand first, then the command to run."""
    lines, again = [], []
    for report in reports:
        if report.state in (READY, UNUSABLE) or report.stem not in sources:
            continue
        folder = root / dataset_class(report.stem).dataset_dir
        lacking = [
            file
            for file in sources[report.stem].files
            if not all(is_there(folder / path) for path in file.place)
        ]
        steps = report.steps or [
            f"{file.name}: {file.manual}. Put it at {root / DOWNLOADS / file.file}"
            for file in lacking
            if not file.addresses
        ]
        if report.state == INCOMPLETE and not lacking:
            steps = [
                *steps,
                f"put right what is said above, or remove what is wrong below {folder}",
            ]
        lines += [f"- {report.stem}: {step}" for step in steps]
        again.append(report.stem)
    if again:
        lines.append(f"Then run: python -m datasets.prepare {' '.join(again)} --root {root}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for.

    Returns:
        exit status: 0 if all data sets asked for are ready, else 1.

    Raises:
        ValueError: unknown name or wrong table of sources.
        OSError: the data root cannot be written, or a file cannot be read.
    """
    sources = read_sources(SOURCES)
    if args.sources:
        sources |= read_sources(args.sources)
    if args.list:
        stems = choose(args.names or ["all"], sources)
        print(_listing([stem for stem in stems if stem in sources], sources))
        return 0
    stems = choose(args.names, sources)
    root = Path(args.root or os.environ.get("DATA") or "data").expanduser().absolute()
    if args.check and not root.is_dir():
        print(f"{root} does not exist", flush=True)
    options = Options(
        mirror=args.mirror or "", timeout_s=args.timeout, delete_archives=args.delete_archives
    )
    reports = []
    for number, stem in enumerate(stems, start=1):
        if stem not in sources:
            reports.append(_inspect_without_source(stem, root))
            continue
        if args.check:
            reports.append(inspect(stem, sources[stem], root))
            continue
        print(f"[{number}/{len(stems)}] {stem}", flush=True)
        try:
            report = prepare(stem, sources[stem], root, options)
        except FAILURES as error:
            print(f"  error: {error}", file=sys.stderr, flush=True)
            report = inspect(stem, sources[stem], root)
            report.steps = [str(error)]
        reports.append(report)
    print(f"\n{root}\n\n{_table(reports)}", flush=True)
    for report in reports:
        for note in report.notes:
            print(f"\n{note}" if note.startswith("class") else note, flush=True)
    steps = _next_steps(reports, sources, root)
    if steps:
        print(f"\n{steps}")
    # A step that failed does not count where everything needed is there all the same.
    return int(any(not r.usable or (r.steps and r.state != READY) for r in reports))


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        exit status: 0, 1 if something asked for is not ready, or that of
        :func:`support.command_line.run`.
    """
    args = build_parser().parse_args(argv)
    again = "interrupted; the same command continues from here"
    return command_line.run(lambda: run(args), args.traceback, lambda: again)


if __name__ == "__main__":
    sys.exit(main())
