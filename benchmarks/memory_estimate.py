"""Estimated against measured memory: ``python -m benchmarks.memory_estimate``.

Compares what ``adaptation.memory_check`` would say before a run with the measurements of
``python -m benchmarks.speed --what memory``, kept in ``benchmarks/results/speed.json``, and fills
the table of ``docs/reliability.md``. Nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.speed import (
    BATCH,
    OUT,
    ROOT,
    TEST_BATCH,
    build,
    class_names,
    save_random_clip,
    store,
)
from support.command_line import add_traceback, run_command
from support.filled import fill_document

DOCUMENT = ROOT / "docs" / "reliability.md"


def estimates(records: list[dict[str, Any]], backbone: Path) -> list[dict[str, Any]]:
    """Return a row for each measurement of a step or a test batch."""
    from adaptation.memory_check import Load

    rows: list[dict[str, Any]] = []
    built, model = None, None
    for record in sorted(records, key=lambda r: (r["method"], r["variant"], r["classes"])):
        of = record["what"].removeprefix("memory of ")
        if of not in ("step", "eval"):
            continue
        kind = record["method"], record["variant"]
        if kind != built:  # of few classes, since a teacher encodes them; one at a time
            model, built = None, kind
            model = build(kind[0], 5, backbone, kind[1]).model
        model.set_classes(class_names(record["classes"]))
        training = of == "step"
        load = Load(model, BATCH if training else TEST_BATCH, training=training)
        held = max(record["peak"], record.get("tensors", 0.0))
        rows.append(
            {
                "of": "step" if training else "test batch",
                "method": record["method"],
                "classes": record["classes"],
                "variant": record["variant"],
                "needed, by the estimate, GB": f"{load.bytes / 1e9:.2f}",
                "measured, GB": f"{held:.2f}",
                "estimate / measured": f"{load.bytes / 1e9 / held:.2f}",
            }
        )
    return rows


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbone", type=Path, help="checkpoint; a random ViT-B/16 if not given")
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Compare, print, and fill the document."""
    records = [r for r in store(OUT, []) if r["what"].startswith("memory of ")]
    with tempfile.TemporaryDirectory() as folder:
        backbone = args.backbone
        if backbone is None:
            backbone = Path(folder, "random_vit_b16.pt")
            save_random_clip(backbone)
        rows = estimates(records, backbone)
    table = tabulate(rows, "keys", "github", disable_numparse=True) + "\n"
    print(table)
    fill_document(DOCUMENT, {"memory estimate": table})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
