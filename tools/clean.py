"""Show or delete what killed processes left in an output folder: ``python -m tools.clean OUTPUT``.

Left-overs are

* temporary files of writes that never ended, and unfinished folders of ``tools.export --bundle``;
* the states (``unfinished.pth``) of trainings that have finished, as their ``result.json`` says;
* claims of run folders whose processes have ended, and what taking them over left.

They are listed, and deleted with ``--yes`` only. Never touched are results, checkpoints and logs,
the states of runs that go on from them, whatever lies in a run folder that a living process claims
(``support/claims.py``), and what was written within the last hour (``--minutes``), since a run that
``python train.py`` started by itself has no claim. Links are not followed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.claims import FILE as CLAIM
from support.claims import Claim, holder_of
from support.command_line import add_traceback, run_command
from support.disk import shown
from support.files import is_temporary

_BESIDE_A_CLAIM = re.compile(rf"{re.escape(CLAIM)}\.([0-9a-f]{{32}}|taken-over)")


@dataclass(frozen=True)
class Leftover:
    """Something that can be deleted.

    Args:
        path: file or folder.
        what: it is.
        size: bytes, of all files where it is a folder.
        written: seconds since the epoch when something of it was last written.
    """

    path: Path
    what: str
    size: int
    written: float

    @property
    def is_claim(self) -> bool:
        """Whether it is a claim, whose age is judged by itself."""
        return self.path.name == CLAIM


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Show what killed processes left behind.")
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="folder with run folders at any depth")
    add("--yes", action="store_true", help="delete what is shown")
    helped = "leave what was written within so many minutes (default: 60)"
    add("--minutes", type=_minutes, default=60.0, metavar="N", help=helped)
    add_traceback(parser)
    return parser


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes, 0 or more")
    return minutes


def leftovers(output: Path) -> Iterator[Leftover]:
    """Yield what killed processes left below a folder, in the order of paths."""
    from dassl.engine.going_on import BEFORE, NEWEST

    for place, folders, files in os.walk(output):
        folders.sort()
        for name in [name for name in folders if is_temporary(name)]:
            folders.remove(name)
            if not Path(place, name).is_symlink():
                yield _measured(Path(place, name), "bundle that was never finished")
        finished = {NEWEST, BEFORE} & {*files} and _has_finished(Path(place))
        for name in sorted(files):
            path = Path(place, name)
            if path.is_symlink():
                continue
            if is_temporary(name):
                yield _measured(path, "write that never ended")
            elif name in (NEWEST, BEFORE) and finished:
                yield _measured(path, "state of a training that has finished")
            elif name == CLAIM and holder_of(place) is None:
                yield _measured(path, "claim of a process that has ended")
            elif _BESIDE_A_CLAIM.fullmatch(name):
                yield _measured(path, "left from taking a claim")


def _measured(path: Path, what: str) -> Leftover:
    inside = [Path(place, name) for place, _, files in os.walk(path) for name in files]
    stats = [found.lstat() for found in (path, *inside)]
    size = sum(stat.st_size for stat in (stats[1:] if path.is_dir() else stats))
    return Leftover(path, what, size, max(stat.st_mtime for stat in stats))


def _has_finished(folder: Path) -> bool:
    """Return whether the record of a folder is that of a training, which is written at its end."""
    from results.record import BadRecord, read

    try:
        record = read(folder)
    except BadRecord:
        return False
    return record is not None and not record["eval_only"]


def living(path: Path, output: Path) -> str | None:
    """Return who does the run that a left-over lies in; None if nobody does."""
    for folder in path.parents:
        if claimant := holder_of(folder):
            return str(claimant)
        if folder == output:
            break
    return None


def run_folder(path: Path, output: Path) -> Path:
    """Return the run folder that a left-over lies in, or the folder that holds it."""
    for folder in path.parents:
        if any(Path(folder, name).exists() for name in (CLAIM, "log.txt", "result.json")):
            return folder
        if folder == output:
            break
    return path.parent


def delete(left: Leftover, output: Path) -> str | None:
    """Delete a left-over while no run can start there.

    Returns:
        who does its run, if somebody has begun to; then nothing is deleted.
    """
    with Claim([run_folder(left.path, output)]) as claim:
        if claim.holder is not None:
            return str(claim.holder)
        if left.is_claim:
            return None  # it was taken over, and ends with this one
        if left.path.is_dir():
            shutil.rmtree(left.path)
        else:
            left.path.unlink(missing_ok=True)
    return None


def clean(args: argparse.Namespace) -> None:
    """Show or delete left-overs, as the command line asks."""
    output = Path(args.output)
    if not output.is_dir():
        raise FileNotFoundError(f"no folder {output}: name one that holds run folders")
    number, size, young = 0, 0, 0
    for left in list(leftovers(output)):
        if not left.is_claim and time.time() - left.written < 60 * args.minutes:
            young += 1
            continue
        claimant = living(left.path, output)
        if claimant is None and args.yes:
            claimant = delete(left, output)
        if claimant is not None:
            print(f"kept: {left.path}, whose run is done by {claimant}")
            continue
        print(f"{shown(left.size):>10}  {left.path}  ({left.what})")
        number, size = number + 1, size + left.size
    if young:
        print(f"kept: {young} written within the last {args.minutes:g} minutes (--minutes)")
    if args.yes:
        print(f"deleted: {number} left-overs, {shown(size)}")
    else:
        print(f"{number} left-overs, {shown(size)}{'; --yes deletes them' if number else ''}")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), clean))
