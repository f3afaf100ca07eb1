"""Base-to-new runs of a method with parts of it changed, as its paper's ablation has them.

   bash scripts/mmlop/ablation.sh DATASET SEED [TABLE ...] [KEY VALUE ...]

Without TABLE these are the paper's steps; others are named in configs/ablations/<Trainer>.yaml
("all" is every one of them). Each run trains on the base classes, tests them and the new ones, in
result folders of its own; a run of several tables is done once, a finished one is skipped. SEED may
be a list, 1,2,3: its seeds are trained together. Further KEY VALUE pairs go to every run.

``python parse_test_res.py`` shows the runs below one another, by the names of their folders;
docs/results.md says how they are compared with the paper's.

From the environment: what scripts/run.sh reads. TAG, and KEY VALUE pairs that make another setting
where there is no TAG, are added to the name of each run. DRY_RUN=1 prints the commands.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import protocols  # noqa: E402  found by the line above
from scripts.run import absolute_folders, run_script  # noqa: E402
from support.command_line import run as run_command  # noqa: E402
from support.hints import refuse_key  # noqa: E402

# What is not of the standard library is imported inside the functions: --help is given without.

FOLDER = ROOT / "configs" / "ablations"
USAGE = "ablation.sh DATASET SEED [TABLE ...] [KEY VALUE ...]"
#: table that runs when none is named
FIRST = "steps"


def read_tables(trainer: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return a method's ablation: table -> run -> config keys and values in turn.

    Args:
        trainer: registry name.

    Raises:
        FileNotFoundError: the method has none.
    """
    import yaml

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


def run_ablation(args: argparse.Namespace) -> int:
    """Make all runs that the command line asks for.

    Args:
        args: the parsed command line.

    Returns:
        Exit status: 0, or that of the first call of ``train.py`` that failed.

    Raises:
        ValueError: for arguments that cannot work.
    """
    from scripts.methods import find_method
    from scripts.planning import own_settings

    for place, word in (("DATASET", args.dataset), ("SEED", args.seed)):
        refuse_key(word, place, f"usage: {USAGE}")
    # keys have dots, tables do not
    first = next((i for i, word in enumerate(args.rest) if "." in word), len(args.rest))
    method = find_method(args.method)
    runs = chosen_runs(read_tables(method.trainer), args.rest[:first])
    opts = args.rest[first:]
    environment = absolute_folders({"PYTHON": sys.executable, **os.environ})
    added = environment.pop("TAG", None)
    if added is None:
        added = own_settings(opts)
    os.chdir(ROOT)
    protocol = protocols.by_name()["base2new"]
    warns = True  # of data that are not there, once
    for run, pairs in runs.items():
        # one without pairs is the method itself, in the folder of an ordinary run
        name = "-".join(filter(None, (run if pairs else "", added)))
        env = environment | ({"TAG": name} if name else {})
        for script in (protocol.training, *protocol.tests):
            words = [args.dataset, args.seed, *pairs, *opts]
            if status := run_script(method.name, script.name, words, env, warns):
                return status
            warns = False
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: that of :func:`run_ablation`, or 2 for arguments that cannot work.
    """
    parser = argparse.ArgumentParser(
        prog="ablation.sh",
        usage=USAGE,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", help=argparse.SUPPRESS)  # ablation.sh names it
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("seed", metavar="SEED")
    parser.add_argument("rest", metavar="TABLE", nargs=argparse.REMAINDER, default=[])
    return run_command(lambda: run_ablation(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
