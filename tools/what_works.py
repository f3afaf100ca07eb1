"""What works with which method: ``python -m tools.what_works``.

Every method is asked with its ``tiny.yaml``: by the checks that a run makes before it reads images
or weights. What they refuse, they say in one line, which stands below the table. ``--write`` puts
both into ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from support.command_line import ROOT, add_traceback, run_command
from support.files import write_text

if TYPE_CHECKING:
    from dassl.config import CfgNode

PAGE = ROOT / "docs" / "performance.md"
WORKS, NOT_THERE = "yes", "-"


@dataclass(frozen=True)
class Way:
    """A way to run a method.

    Args:
        name: column of the table.
        pairs: config keys and values; ``{node}`` stands for the method's node.
        together: whether seeds are trained together.
        processes: that share a run.
        of_steps: whether it is about training steps, which not all methods have.
    """

    name: str
    pairs: tuple[object, ...] = ()
    together: bool = False
    processes: int = 1
    of_steps: bool = False


WAYS = (
    Way("`--seeds`", together=True),
    Way("`MODEL.MEMORY_GB`", ("MODEL.MEMORY_GB", 6.0)),
    Way("`OPTIM.CUDA_GRAPH`", ("OPTIM.CUDA_GRAPH", True), of_steps=True),
    Way("`torchrun`", ("INPUT.SEEDED_VIEWS", True), processes=2),
    *(Way(f"`PREC` {name}", ("{node}.PREC", name)) for name in ("amp", "bf16", "fp16")),
)


def config(method: str, pairs: Sequence[object]) -> CfgNode:
    """Return the settings of a method's ``tiny.yaml``, and these."""
    import datasets
    import trainers
    from dassl.config import get_cfg_default
    from dassl.engine import TRAINER_REGISTRY

    kind = TRAINER_REGISTRY.get(method)
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    folder = ROOT / "configs" / "trainers"
    # a method without a file of its own is a variant of the one that it derives from
    names = [base.__name__ for base in kind.__mro__ if (folder / base.__name__).is_dir()]
    cfg.merge_from_file(str(folder / names[0] / "tiny.yaml"))
    node = f"TRAINER.{getattr(kind, 'node', '')}"
    given = [word.format(node=node) if isinstance(word, str) else word for word in pairs]
    cfg.merge_from_list(["TRAINER.NAME", method, "SEED", 1, *given])
    return cfg


def refusal(method: str, way: Way) -> str | None:
    """Return the line that refuses a way to run a method; None where it works."""
    from adaptation.seeds import check_trains_together
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.ranks import check_can_share
    from dassl.utils import SettingError
    from dassl.utils.ranks import VARIABLES

    kind: Any = TRAINER_REGISTRY.get(method)
    cfg = config(method, way.pairs)
    started = dict.fromkeys(VARIABLES, str(way.processes)) if way.processes > 1 else {}
    with mock.patch.dict(os.environ, started):
        try:
            check_can_share(kind, cfg)
            kind.check_cfg(object.__new__(kind), cfg)  # comes before anything is built
            if way.together:
                check_trains_together(kind, cfg)
        except (SettingError, ValueError) as error:
            return str(error)
    return None


def is_there(method: str, way: Way) -> bool:
    """Return whether a method has what a way is about: steps, or precisions."""
    from dassl.engine import TRAINER_REGISTRY

    kind: Any = TRAINER_REGISTRY.get(method)
    if way.of_steps:
        return getattr(kind, "has_steps", False)
    return not any("{node}" in str(word) for word in way.pairs) or hasattr(kind, "node")


def table() -> str:
    """Return the table of all registered methods as Markdown, and the lines of what is refused."""
    from tabulate import tabulate

    import trainers  # noqa: F401  registers the methods
    from dassl.engine import TRAINER_REGISTRY

    numbers: dict[str, int] = {}

    def cell(method: str, way: Way) -> str:
        if not is_there(method, way):
            return NOT_THERE
        line = refusal(method, way)
        if line is None:
            return WORKS
        return f"no ({numbers.setdefault(line.replace(method, 'METHOD'), len(numbers) + 1)})"

    methods = sorted(TRAINER_REGISTRY.registered_names(), key=str.lower)
    rows = [[method, *map(partial(cell, method), WAYS)] for method in methods]
    headers = ["method", *(way.name for way in WAYS)]
    reasons = [f"{number}. `{line}`\n" for line, number in numbers.items()]
    return tabulate(rows, headers, "github", disable_numparse=True) + "\n\n" + "".join(reasons)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into its page")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Print the table, or put it into its page."""
    if not args.write:
        print(table(), end="")
        return
    from support.filled import fill

    write_text(fill(PAGE.read_text("utf-8"), {"what works": table()}), PAGE)
    print(f"written: {PAGE}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
