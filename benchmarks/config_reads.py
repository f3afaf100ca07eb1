"""Which config keys each method reads: ``python -m benchmarks.config_reads``.

Builds, trains and tests every method that comes with the toolbox, for an epoch on one image per
class of half the digits, with its ``tiny.yaml``, and writes the keys that were read on the way to
``benchmarks/results/config_reads.json``, a line for the keys that the same methods read.
Keys of the methods' own nodes are left out: whose they are is known. ``docs/config_reference.md``
shows the rest (``python -m tools.config_reference --write``).

What is copied, printed or stored as a whole is not read by that.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import train
from dassl.config import CfgNode
from support.command_line import ROOT, add_traceback, run_command
from support.files import write_text
from tools.config_reference import READS, methods_here


@contextmanager
def reads_of(cfg: CfgNode) -> Iterator[set[str]]:
    """Record which values of a config, and of its copies, are read in this context.

    Args:
        cfg: the config.

    Yields:
        A set of dotted keys, filled on the way.
    """
    reads: set[str] = set()

    def name(node: CfgNode, prefix: str) -> None:
        node.__dict__["read_as"] = prefix  # copies have it as well
        for key, value in node.items():
            if isinstance(value, CfgNode):
                name(value, f"{prefix}{key}.")

    def noting(node: CfgNode, key: str) -> object:
        value = dict.__getitem__(node, key)
        prefix = node.__dict__.get("read_as")
        if prefix is not None and not isinstance(value, CfgNode):
            reads.add(prefix + key)
        return value

    name(cfg, "")
    CfgNode.__getitem__ = noting  # type: ignore[method-assign, assignment]
    try:
        yield reads
    finally:
        del CfgNode.__getitem__


def reads_of_method(method: str, folder: Path) -> set[str]:
    """Return the keys that a method reads while it is built, trained and tested.

    Args:
        method: registry name.
        folder: for data and results; those of another method do not matter.
    """
    own = ROOT / "configs" / "trainers" / method / "tiny.yaml"
    words = ["--trainer", method, "--root", str(folder / "data"), "--seed", "1", "--device", "cpu"]
    words += ["--output-dir", str(folder / method), "DATASET.NAME", "Digits"]
    words += ["DATASET.SUBSAMPLE_CLASSES", "new"]  # the smaller half
    words[:0] = ["--config-file", str(own if own.is_file() else ROOT / "configs" / "tiny.yaml")]
    args = train.build_parser().parse_args(
        [*words, "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    )
    cfg = train.setup_cfg(args)
    with reads_of(cfg) as reads:
        trainer = train.build(args, cfg)
        trainer.train()
        trainer.run_notes.on_end()
    return {key for key in reads if not (key.startswith("TRAINER.") and key.count(".") > 1)}


def stored(reads: Mapping[str, set[str]]) -> str:
    """Return the content of the file: a line for the keys that some methods read, and no others.

    Args:
        reads: method -> keys.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for key in sorted(set().union(*reads.values())):
        groups.setdefault(tuple(m for m in reads if key in reads[m]), []).append(key)
    lines = (json.dumps({"methods": m, "keys": keys}) for m, keys in groups.items())
    return "[\n" + ",\n".join(lines) + "\n]\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Record which config keys each method reads.")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Record all methods and write the file."""
    reads = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in methods_here():
            with (
                contextlib.redirect_stdout(said := io.StringIO()),
                contextlib.redirect_stderr(said),
            ):
                reads[method] = reads_of_method(method, Path(folder))
            print(f"{method}: {len(reads[method])} keys")
    write_text(stored(reads), READS)
    print(READS.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), act))
