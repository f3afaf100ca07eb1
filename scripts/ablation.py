"""Base-to-new runs of a method with parts of it changed, as its paper's ablation has them.

   bash scripts/mmlop/ablation.sh DATASET SEED [TABLE ...] [KEY VALUE ...]

Without TABLE these are the paper's steps; others are named in configs/ablations/<Trainer>.yaml
("all" is every one of them). Each run trains on the base classes, tests them and the new ones, in
result folders of its own; a run of several tables is done once, a finished one is skipped. SEED may
be a list, 1,2,3: its seeds are trained together. Further KEY VALUE pairs go to every run.

`python parse_test_res.py` shows the runs below one another, by the names of their folders;
docs/results.md says how they are compared with the paper's.

From the environment: what scripts/run.sh reads. TAG, and KEY VALUE pairs that make another setting
where there is no TAG, are added to the name of each run. DRY_RUN=1 prints the commands.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dassl.config import is_runtime_key  # noqa: E402  found by the line above

FOLDER = ROOT / "configs" / "ablations"
#: table that runs when none is named
FIRST = "steps"


def read_tables(trainer: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return a method's ablation: table -> run -> config keys and values in turn.

    Args:
        trainer: registry name.

    Raises:
        FileNotFoundError: the method has none.
    """
    tables = yaml.safe_load((FOLDER / f"{trainer}.yaml").read_text("utf-8"))

    def pairs(keys: dict[str, object]) -> tuple[str, ...]:
        node = f"TRAINER.{trainer.upper()}"
        return tuple(w for key, value in keys.items() for w in (f"{node}.{key}", str(value)))

    return {
        table: {run: pairs(keys) for run, keys in runs.items()} for table, runs in tables.items()
    }


def chosen_runs(
    tables: dict[str, dict[str, tuple[str, ...]]], names: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the runs of the named tables, each once.

    Raises:
        ValueError: for a table that there is not.
    """
    names = list(tables) if "all" in names else names or [FIRST]
    for name in names:
        if name not in tables:
            raise ValueError(f"no table {name!r}; there are: {' '.join(tables)} all")
    return {run: pairs for name in names for run, pairs in tables[name].items()}


def own_name(opts: Sequence[str]) -> str:
    """Return the name that run.sh gives to KEY VALUE pairs that make another setting."""
    pairs = zip(opts[::2], opts[1::2], strict=False)
    name = "-".join(f"{key}={value}" for key, value in pairs if not is_runtime_key(key))
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", name)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: 0, that of the first call that failed, or 2 for arguments that cannot work.
    """
    parser = argparse.ArgumentParser(
        prog="ablation.sh",
        usage="ablation.sh DATASET SEED [TABLE ...] [KEY VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", help=argparse.SUPPRESS)  # ablation.sh names it
    parser.add_argument("trainer", help=argparse.SUPPRESS)
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("seed", metavar="SEED")
    parser.add_argument("rest", metavar="TABLE", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args(argv)
    # keys have dots, tables do not
    first = next((i for i, word in enumerate(args.rest) if "." in word), len(args.rest))
    try:
        runs = chosen_runs(read_tables(args.trainer), args.rest[:first])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    opts = args.rest[first:]
    added = os.environ.get("TAG", own_name(opts))
    for run, pairs in runs.items():
        env = {key: value for key, value in os.environ.items() if key != "TAG"}
        # one without pairs is the method itself, in the folder of an ordinary run
        if name := "-".join(filter(None, (run if pairs else "", added))):
            env["TAG"] = name
        for protocol in ("base2new_train", "base2new_test"):
            script = ROOT / "scripts" / args.method / f"{protocol}.sh"
            words = [args.dataset, args.seed, *pairs, *opts]
            status = subprocess.run(["bash", script, *words], env=env).returncode
            if status:
                return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
