"""Images per second and core of the data pipeline: ``python -m benchmarks.data_pipeline``.

Synthetic photographs are read with and without the cache (``DATALOADER.CACHE``), in the settings of
``configs/base.yaml``, in turns in one process with one thread. The clock counts this process's CPU
time, so other work on the machine matters little; a ratio is taken within a turn. Prints the tables
of ``benchmarks/results/data_pipeline.md`` and writes ``benchmarks/results/data_pipeline.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader

from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.image_cache import CACHE_VARIABLE
from dassl.data.transforms import build_transform
from dassl.utils import write_json
from support.command_line import add_traceback, output_file, positive, run_command

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "data_pipeline.json"
WIDTH, HEIGHT = 500, 375
#: row of the table -> DATALOADER.CACHE, training images
PIPELINES = {
    "train, decoded each time": ("none", True),
    "train, CACHE exact": ("exact", True),
    "train, CACHE fast": ("fast", True),
    "test, decoded each time": ("none", False),
    "test again, CACHE exact": ("exact", False),
    "test again, CACHE fast": ("fast", False),
}
BASELINE = {True: "train, decoded each time", False: "test, decoded each time"}


def write_images(folder: Path, count: int) -> list[Datum]:
    """Write JPEG files of smooth colours with some grain, about 66 kB each."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.BICUBIC))
        image = image + rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
        path = folder / f"{number}.jpg"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        items.append(Datum(str(path)))
    return items


def build_loader(items: list[Datum], cache: str, is_train: bool) -> DataLoader:
    """Build the loader of a row; batches are those of PromptSRC's training and of evaluation."""
    cfg = get_cfg_default()
    cfg.merge_from_file(str(ROOT / "configs" / "base.yaml"))
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "DATALOADER.CACHE", cache])
    cfg.DATASET.NAME = "benchmark"
    with contextlib.redirect_stdout(io.StringIO()):
        tfm = build_transform(cfg, is_train=is_train)
    return build_data_loader(
        cfg, data_source=items, batch_size=4 if is_train else 100, tfm=tfm, is_train=is_train
    )


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(items: list[Datum], turns: int) -> dict[str, dict[str, list[float]]]:
    """Measure CPU seconds of every turn, by row, for single images and batches of a loader."""
    loaders = {name: build_loader(items, *row) for name, row in PIPELINES.items()}
    taken = {name: {"images": [], "batches": []} for name in PIPELINES}
    for loader in loaders.values():
        for _ in loader:  # fills the cache, and warms up the rest
            pass
    for _ in range(turns):
        for name, loader in loaders.items():
            data = loader.dataset
            images = seconds(lambda data=data: [data[i]["label"] for i in range(len(data))])
            batches = seconds(lambda loader=loader: [batch["label"] for batch in loader])
            taken[name]["images"].append(images)
            taken[name]["batches"].append(batches)
    return taken


def summarise(taken: dict[str, dict[str, list[float]]], count: int) -> list[dict[str, object]]:
    """Return per row median images per second, and median, least and largest ratio to decoding."""
    rows = []
    for name, (_, is_train) in PIPELINES.items():
        row: dict[str, object] = {"pipeline": name}
        for kind, values in taken[name].items():
            plain = taken[BASELINE[is_train]][kind]
            ratios = [p / v for p, v in zip(plain, values, strict=True)]
            row[kind] = {
                "per_second": round(median(count / v for v in values)),
                "ratio": [round(r, 2) for r in (median(ratios), min(ratios), max(ratios))],
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Lay out the rows as Markdown."""
    cells = []
    for row in rows:
        cells.append([row["pipeline"]])
        for kind in ("images", "batches"):
            middle, low, high = row[kind]["ratio"]
            plain = row["pipeline"] in BASELINE.values()
            ratio = "1" if plain else f"{middle:.1f} ({low:.1f} to {high:.1f})"
            cells[-1] += [f"{row[kind]['per_second']:,}", ratio]
    headers = ["", "images/s", "ratio", "in batches: images/s", "ratio"]
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=positive, default=200)
    parser.add_argument("--turns", type=positive, default=7)
    parser.add_argument("--out", type=output_file, default=OUT)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, print the table and write the result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = str(Path(folder, "cache"))
        items = write_images(Path(folder), args.images)
        kilobytes = np.mean([os.path.getsize(item.impath) for item in items]) / 1000
        rows = summarise(measure(items, args.turns), args.images)
    setting = {
        "images": args.images,
        "pixels": [WIDTH, HEIGHT],
        "kilobytes": round(kilobytes, 1),
        "turns": args.turns,
        "clock": "CPU time of one process, one thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    write_json({"setting": setting, "rows": rows}, str(args.out))
    print(table(rows))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
