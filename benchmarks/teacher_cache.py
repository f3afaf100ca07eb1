"""What the frozen teacher costs in a training step: ``python -m benchmarks.teacher_cache``.

A step of PromptSRC's kind (prompted text and images, teacher, backward, SGD) on a ViT-B/16 with
random weights, on which time does not depend, with 4 images and 50 classes in float32 on one
thread; with the teacher's image features computed and with them known, in turn. Also the one-off
costs: the text features over 60 templates, reading them instead, and the fingerprint of the
weights. CPU seconds of the process, kept in ``benchmarks/results/teacher_cache.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from open_clip import IMAGENET_CLASSNAMES

from adaptation.classifier import PromptedCLIP
from adaptation.losses import consistency_terms
from adaptation.savings.teacher import TeacherCache, weights_fingerprint
from benchmarks.parameters import CONFIGS, VIT_B16, build_learner
from clip.model import CLIP
from dassl.utils import write_json
from support.command_line import add_traceback, output_file, positive, run_command

OUT = Path(__file__).resolve().parent / "results" / "teacher_cache.json"
CONFIG = CONFIGS / "PromptSRC" / "vit_b16_c4_ep20_batch4_4+4ctx.yaml"
BATCH, CLASSES = 4, 50


def random_vit_b16() -> CLIP:
    """Build a CLIP ViT-B/16 with small random weights."""
    clip = CLIP(**VIT_B16)
    for parameter in clip.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return clip.eval()


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of this process for one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def make_step(model: PromptedCLIP) -> Callable[[list[str] | None], None]:
    """Return a function that does a training step, given names of the batch's views or None."""
    image = torch.randn(BATCH, 3, 224, 224)
    label = torch.arange(BATCH)
    optimiser = torch.optim.SGD(model.learner.parameters(), lr=0.0025, momentum=0.9)

    def step(views: list[str] | None) -> None:
        prediction = model.predict(image, views)
        frozen = prediction.frozen()
        terms = consistency_terms(prediction, frozen, (25.0, 10.0, 1.0))
        loss = F.cross_entropy(prediction.logits, label) + sum(terms.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def measure(repeats: int, folder: str) -> dict[str, list[float]]:
    """Measure the CPU seconds of every part, by name."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clip, classnames = random_vit_b16(), list(IMAGENET_CLASSNAMES[:CLASSES])
    learner = build_learner("PromptSRC", CONFIG, clip, CLASSES)
    model = PromptedCLIP(clip, learner, classnames)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        seconds.setdefault(name, []).append(cpu_seconds(run))

    timed("weights fingerprint", lambda: weights_fingerprint(clip))
    model.teacher_cache = TeacherCache(clip, "fp32", limit_mb=100, folder=folder)
    timed("text features computed", model.frozen_text_features)
    model.set_classes(classnames)  # forgets them
    timed("text features read", model.frozen_text_features)

    step, views = make_step(model), [f"{0:032x}/{n:032x}" for n in range(BATCH)]
    for known in (None, views, views):  # warm up, and get to know the views
        step(known)
    for _ in range(repeats):
        timed("step, teacher computed", lambda: step(None))
        timed("step, teacher known", lambda: step(views))
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=positive, default=7)
    parser.add_argument("--out", type=output_file, default=OUT)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure, keep and print."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(args.repeats, folder)
    medians = {name: median(values) for name, values in seconds.items()}
    pairs = zip(seconds["step, teacher computed"], seconds["step, teacher known"], strict=True)
    result = {
        "setting": f"ViT-B/16, random weights, float32, 1 thread, batch {BATCH}, C = {CLASSES}",
        "torch": str(torch.__version__),
        "cpu_seconds": {name: [round(v, 3) for v in vs] for name, vs in seconds.items()},
        "median": {name: round(value, 3) for name, value in medians.items()},
        "step_ratio": round(medians["step, teacher computed"] / medians["step, teacher known"], 3),
        "step_ratio_of_each_pair": [round(a / b, 3) for a, b in pairs],
    }
    write_json(result, str(args.out))
    print(json.dumps(result, indent=4))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
