"""Time, memory and arithmetic of training and evaluation: ``python -m benchmarks.speed``.

Compares this toolbox with the plain computation of ``clip/plain.py`` on a ViT-B/16 with random
weights (neither time nor memory depends on them) in float32 on one thread. Measurements are
kept in ``benchmarks/results/speed.json``, newer ones replacing older ones of the same setting, and
fill the tables of ``benchmarks/results/speed.md``.

* ``step``: a training step of 4 images; forward, teacher if the method has one, backward, update;
* ``text``: the text encoder with the method's prompts, forward and backward;
* ``eval``: a test batch of 100 images; the plain variant encodes the text for every batch;
* ``memory``: the peak of a step, with ``--memory-of text`` or ``eval`` that of the text encoder or
  of a test batch, above what the process held before, in a process of its own;
* ``flops``: operations of a step and of its text part, counted without running them;
* ``cost``: a step of this toolbox beside the encoding of its images by CLIP without prompts, in
  turn; settings are those of base-to-new.

Methods that train on features take their steps without an encoder: benchmarks/feature_pools.py has
their costs.

Times are CPU seconds of the process, the variants in turn, after one run that is not counted. Of
the text encoder alone, which is quick, a run that is not counted precedes each that is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from benchmarks.names import method_name
from benchmarks.parameters import VIT_B16
from support.command_line import add_traceback, output_file, positive, run_command
from train import ask_for_large_pages

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed.json"
DOCUMENT = OUT.with_suffix(".md")
BATCH, TEST_BATCH = 4, 100
#: the plain computation, this toolbox, and this toolbox with MODEL.MEMORY_GB
PLAIN, PACKED, WITHIN = "plain", "ours", "ours, MEMORY_GB "
WHAT = ("step", "text", "eval", "memory", "flops", "cost")
#: what tells one measurement from another
KEYS = ("what", "method", "classes", "variant")
#: what was aimed at: what, method, classes, at least this ratio (CPU time, user time)
AIMS = (
    ("step", "PromptSRC", 5, 1.3, None),
    ("step", "PromptSRC", 50, 2.5, None),
    ("step", "PromptSRC", 500, 12.0, 8.5),
    ("step", "IVLP", 5, 1.35, None),
    ("step", "IVLP", 50, 3.0, None),
    ("step", "IVLP", 500, 13.0, None),
    ("text", "PromptSRC", 50, 17.0, None),
    ("eval", "PromptSRC", 50, 1.25, None),
    ("eval", "PromptSRC", 500, 2.3, None),
)
#: at most so many 10^9 bytes above what was held before
AIM_MEMORY = ("memory of step", "PromptSRC", 500, 1.0)
#: at most this share of operations above those of a step whose text is free, up to so many classes
AIM_FLOOR, AIM_FLOOR_CLASSES, AIM_FLOOR_METHODS = 0.1, 50, ("PromptSRC", "IVLP")
#: header of the columns that hold ratios
GAIN = "plain / ours (all runs)"


def save_random_clip(path: Path, sizes: Sequence[int | None] = tuple(VIT_B16.values())) -> None:
    """Write a CLIP with random weights; biases and gains are not trivial."""
    import torch

    from clip.model import CLIP

    torch.manual_seed(0)
    clip = CLIP(*sizes)
    for parameter in clip.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(clip.state_dict() | {"quick_gelu": torch.tensor(True)}, path)


def class_names(n_classes: int) -> list[str]:
    """Return that many of ImageNet's names, with numbers when they come again."""
    from open_clip import IMAGENET_CLASSNAMES as NAMES

    rounds = [f" {i}" if i else "" for i in range(-(-n_classes // len(NAMES)))]
    return [name + number for number in rounds for name in NAMES][:n_classes]


def first_config(method: str) -> str:
    """Return the name of the first ViT-B/16 config of a method."""
    return min((ROOT / "configs/trainers" / method).glob("vit_b16*.yaml")).stem


def base_to_new_config(method: str) -> str:
    """Return the name of the config of a method that base-to-new takes for most data sets."""
    from scripts.methods import find_method

    return find_method(method).config_for("base2new", "", "16")


def build(
    method: str, n_classes: int, backbone: Path, variant: str, *pairs: object, config: str = ""
) -> Any:
    """Build a method's trainer in float32, with classes but without images.

    Sentences about the classes, where a method reads some, are one of each class.

    Args:
        method: registry name.
        n_classes: number of classes, named by ``class_names``.
        backbone: checkpoint file of a CLIP.
        variant: ``PLAIN``, ``PACKED``, or ``WITHIN`` and a number of 10^9 bytes.
        pairs: further config keys and values.
        config: name of the config; by default ``first_config``.
    """
    import torch

    import datasets
    import trainers
    from clip.encoders import Encoders
    from dassl.config import get_cfg_default
    from dassl.engine import TRAINER_REGISTRY

    names = class_names(n_classes)
    cfg, registered = get_cfg_default(), TRAINER_REGISTRY.get(method)
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    name = f"{config or first_config(method)}.yaml"
    cfg.merge_from_file(str(ROOT / "configs/trainers" / method / name))
    cfg.merge_from_list(
        ["TRAINER.NAME", method, f"TRAINER.{registered.node}.PREC", "fp32", "USE_CUDA", False]
        + ["DATASET.NUM_SHOTS", 16]
        + ["MODEL.BACKBONE.NAME", str(backbone), "VERBOSE", False]
        + ["MODEL.MEMORY_GB", float(variant[len(WITHIN) :]) if variant.startswith(WITHIN) else 0]
        # one text per class for the teacher: encoded once, outside of what is measured
        + ["DATASET.TEMPLATES", ("a photo of a {}.",), "MODEL.TEACHER_CACHE_MB", 0, *pairs]
    )

    class WithoutImages(registered):
        def build_data_loader(self) -> None:
            dataset = SimpleNamespace(classnames=names, dataset_dir="", train_x=())
            self.dm = SimpleNamespace(dataset=dataset)
            self.lab2cname = dict(enumerate(names))

        def steps_per_epoch(self) -> int:
            return 2

    torch.manual_seed(1)
    trainer = WithoutImages(cfg)
    trainer.num_batches, trainer.batch_idx = 2, 0  # never the last batch of an epoch
    trainer.model.frozen_text_features()
    if "SENTENCES" in trainer.node_cfg:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "sentences.json")
            path.write_text(json.dumps({name: [f"a photo of a {name}."] for name in names}))
            trainer.node_cfg.SENTENCES = str(path)
            trainer.model.frozen_sentence_features(trainer.sentences())
    if variant == PLAIN:
        trainer.model.encoders = Encoders(trainer.model.clip, fast=False)
    return trainer


def random_batch(trainer: Any, size: int) -> dict[str, Any]:
    """Draw images of noise, with labels that go round the classes."""
    import torch

    side = trainer.model.clip.visual.input_resolution
    image = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(2))
    return {"img": image, "label": torch.arange(size) % len(trainer.model.classnames)}


def step(trainer: Any) -> Callable[[], object]:
    """Return a function that does a training step."""
    trainer.set_model_mode("train")
    batch = random_batch(trainer, BATCH)
    return lambda: trainer.forward_backward(batch)


def text(trainer: Any) -> Callable[[], object]:
    """Return a function that computes all classes' text features and their gradients."""

    def run() -> None:
        trainer.model.learner.zero_grad()
        trainer.model.text_features().sum().backward()

    return run


def evaluation(trainer: Any) -> Callable[[], object]:
    """Return a function that computes the logits of a test batch.

    The plain variant encodes the text for every batch.
    """
    import torch

    trainer.set_model_mode("eval")
    image = random_batch(trainer, TEST_BATCH)["img"]

    @torch.no_grad()
    def run() -> None:
        trainer.model_inference(image)

    if trainer.model.encoders.fast and not trainer.model.learner.image_conditioned:
        with torch.no_grad():
            trainer.model.text_features()  # kept from here on
    return run


def prepare(
    what: str, method: str, n_classes: int, backbone: Path, variant: str
) -> Callable[[], object]:
    """Return what is measured, as a function."""
    trainer = build(method, n_classes, backbone, variant)
    if what == "eval":
        return evaluation(trainer)
    return step(trainer) if what == "step" else text(trainer)


def cpu_seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return the user and system CPU seconds of this process for one call."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def measure_time(
    what: str,
    method: str,
    n_classes: int,
    backbone: Path,
    variants: Sequence[str],
    repeats: int,
    warm_up: bool = True,
) -> dict[str, dict[str, Any]]:
    """Measure CPU seconds by variant; a repeat runs every variant once."""
    runs = {v: prepare(what, method, n_classes, backbone, v) for v in variants}
    found = {variant: {"user": [], "system": []} for variant in variants}
    for repeat in range(-warm_up, repeats):
        for variant, run in runs.items():
            if what == "text":
                run()  # takes back the memory that the other variant's run has freed
            user, system = cpu_seconds(run)
            if repeat >= 0:
                found[variant]["user"].append(user)
                found[variant]["system"].append(system)
    return found


def measure_cost(method: str, n_classes: int, backbone: Path, repeats: int) -> dict[str, Any]:
    """Measure a step and the encoding of its images in turn, after one of each not counted."""
    import torch

    config = base_to_new_config(method)
    trainer = build(method, n_classes, backbone, PACKED, config=config)
    images = random_batch(trainer, BATCH)["img"]

    @torch.no_grad()
    def encode() -> None:
        trainer.model.frozen_image_features(images)

    runs = {"": step(trainer), "encoding_": encode}
    found: dict[str, Any] = {"config": config}
    for repeat in range(-1, repeats):
        for name, run in runs.items():
            used = dict(zip(("user", "system"), cpu_seconds(run), strict=True))
            for field in used if repeat >= 0 else ():
                found.setdefault(name + field, []).append(used[field])
    return found


def count_flops(method: str, n_classes: int, backbone: Path, variant: str) -> dict[str, Any]:
    """Count the operations (two per multiply-add) of a step and of its text part, in 1e9."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    trainer = build(method, n_classes, backbone, variant)
    trainer.set_model_mode("train")
    batch = random_batch(trainer, BATCH)
    if variant != PLAIN:
        with torch.no_grad():  # index tensors depend on values, which counting has not
            trainer.model.text_features()

    def whole() -> None:
        prediction = trainer.model.predict(batch["img"])
        trainer.loss(prediction, batch["label"])[0].backward()

    found = {"text_gflop": 0.0}  # of a method that has the text encoded once and for all
    runs = {"gflop": whole}
    if trainer.model.learner.text_changes() is not None:
        runs["text_gflop"] = text(trainer)
    for name, run in runs.items():
        trainer.model.learner.zero_grad()
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as count:
            run()
        found[name] = count.get_total_flops() / 1e9
    return found


def resident(field: str) -> float:
    """Read this process's memory in 1e9 bytes: ``VmRSS`` now, ``VmHWM`` at its peak (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024 / 1e9


def measure_memory(
    what: str, method: str, n_classes: int, backbone: Path, variant: str
) -> dict[str, Any]:
    """Measure the peak of the first run above what was held before, and its CPU seconds."""
    run = prepare(what, method, n_classes, backbone, variant)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading, is forgotten
    base = resident("VmRSS")
    user, system = cpu_seconds(run)
    return {"peak": resident("VmHWM") - base, "base": base, "user": [user], "system": [system]}


def in_child(*args: object, **environment: str) -> dict[str, Any]:
    """``measure_memory`` in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", "--child", *map(str, args)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    if result.returncode:
        raise RuntimeError(f"a process that measures failed, for the above: {shlex.join(command)}")
    return json.loads(result.stdout.splitlines()[-1])


def memory(*args: object) -> dict[str, Any]:
    """``measure_memory`` in a fresh process, and the peak in one whose allocator keeps nothing.

    glibc's allocator keeps holes that it cannot fill again; with every large tensor in pages of its
    own (slower), what is held are the tensors.
    """
    alone = {"MALLOC_MMAP_THRESHOLD_": "1000000", "THP_MEM_ALLOC_ENABLE": "0"}
    tensors = in_child(*args, **alone)["peak"]
    return in_child(*args) | {"tensors": tensors}


def machine() -> str:
    """Describe processor, cores and PyTorch version."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    processor = model[0] if model else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, 1 thread used, PyTorch {torch.__version__}"


def store(out: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add measurements to a file, in place of older ones of the same settings."""
    from dassl.utils.tools import write_json

    kept = json.loads(out.read_text("utf-8")) if out.exists() else []
    merged = {tuple(record[key] for key in KEYS): record for record in [*kept, *records]}
    ordered = [merged[key] for key in sorted(merged)]
    write_json(ordered, out)
    return ordered


def seconds(record: dict[str, Any]) -> list[float]:
    """Add user and system time of every run."""
    return [u + s for u, s in zip(record["user"], record["system"], strict=True)]


def ratios(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Return the ratio of the medians, and the range of those of single repeats."""
    text = f"{median(slow) / median(fast):.2f}"
    each = [a / b for a, b in zip(slow, fast, strict=False)]
    return text if len(each) == 1 else f"{text} ({min(each):.2f} to {max(each):.2f})"


def tables(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Lay out the tables of time, memory and operations as Markdown, by name."""
    from tabulate import tabulate

    pairs: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for record in records:
        pairs.setdefault(tuple(record[key] for key in KEYS[:3]), {})[record["variant"]] = record
    time, memory, flops, cost = [], [], [], []
    for (what, method, n_classes), by_variant in pairs.items():
        head = {"method": method, "classes": n_classes}
        slow, fast = by_variant.get(PLAIN), by_variant.get(PACKED)
        if what.startswith("memory"):
            for variant, record in by_variant.items():
                row = {"of": what.removeprefix("memory of "), **head, "variant": variant}
                row["peak above base, GB"] = f"{record['peak']:.2f}"
                row["tensors, GB"] = f"{record['tensors']:.2f}" if "tensors" in record else ""
                row["CPU s, first run"] = f"{sum(seconds(record)):.1f}"
                memory.append(row)
        elif what == "cost":
            record = by_variant[PACKED]
            row = {**head, "config": record["config"]}
            row["step, user s"] = f"{median(record['user']):.2f}"
            row["encoding, user s"] = f"{median(record['encoding_user']):.2f}"
            row["step / encoding (all runs)"] = ratios(record["user"], record["encoding_user"])
            row["runs"] = len(record["user"])
            cost.append(row)
        elif slow is None or fast is None:
            continue
        elif what == "flops":
            row = {**head, "plain, GFLOP": round(slow["gflop"]), "ours": round(fast["gflop"])}
            row["plain / ours"] = f"{slow['gflop'] / fast['gflop']:.2f}"
            text_ratio = slow["text_gflop"] / (fast["text_gflop"] or 1)
            row["text only"] = f"{text_ratio:.1f}" if text_ratio else ""
            floor = fast["gflop"] - fast["text_gflop"]
            row["if text were free"] = f"{slow['gflop'] / floor:.2f}"
            row["ours over that floor"] = f"{above_floor(fast):.1%}"
            flops.append(row)
        else:
            row = {"": what, **head}
            row["plain, CPU s"] = f"{median(seconds(slow)):.2f}"
            row["ours, CPU s"] = f"{median(seconds(fast)):.2f}"
            row[GAIN] = ratios(seconds(slow), seconds(fast))
            row["user time only"] = ratios(slow["user"], fast["user"])
            row["runs"] = len(fast["user"])
            time.append(row)
    tables = {
        **{"time": time, "memory": memory, "flops": flops, "cost": cost},
        "aims": aims(pairs),
    }
    return {
        name: tabulate(rows, "keys", "github", disable_numparse=True) + "\n"
        for name, rows in tables.items()
        if rows
    }


def aims(pairs: dict[tuple[str, str, int], dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of the table of what was aimed at beside what was reached."""
    rows: list[dict[str, Any]] = []

    def add(name: str, key: tuple[str, str, int], aim: str, reached: str, met: bool) -> None:
        row = {"": name, "method": key[1], "classes": key[2], "aim": aim, "reached": reached}
        rows.append({**row, "met": "yes" if met else "no"})

    for what, method, n_classes, least, least_user in AIMS:
        found = pairs.get((what, method, n_classes), {})
        if PLAIN not in found or PACKED not in found:
            continue
        slow, fast = found[PLAIN], found[PACKED]
        kinds = [("", seconds, least), (", user time only", lambda r: r["user"], least_user)]
        for name, of, aim in kinds:
            if aim is not None:
                reached = median(of(slow)) / median(of(fast))
                key = (what, method, n_classes)
                add(what + name, key, f"{aim:g} times", f"{reached:.2f}", reached >= aim)
    *key, most = AIM_MEMORY
    record = pairs.get(tuple(key), {}).get(PACKED, {})
    names = {"tensors": "memory of a step, tensors", "peak": "memory of a step, process"}
    for field in (name for name in names if name in record):
        reached = record[field]
        add(names[field], tuple(key), f"{most:g} GB", f"{reached:.2f}", reached <= most)
    for key, found in pairs.items():
        aimed = key[1] in AIM_FLOOR_METHODS and key[2] <= AIM_FLOOR_CLASSES
        if key[0] == "flops" and aimed and PACKED in found:
            excess = above_floor(found[PACKED])
            aim = f"{AIM_FLOOR:.0%} above"
            add(
                "operations over those without text", key, aim, f"{excess:.1%}", excess <= AIM_FLOOR
            )
    return rows


def above_floor(record: dict[str, Any]) -> float:
    """Return the excess of a step's operations over those without the text, as a fraction."""
    return record["gflop"] / (record["gflop"] - record["text_gflop"]) - 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", type=method_name, default=["PromptSRC", "IVLP"])
    parser.add_argument("--classes", nargs="+", type=positive, default=[5, 50])
    parser.add_argument("--what", nargs="*", choices=WHAT, default=["step", "text", "flops"])
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--cold", action="store_true", help="count the first run of each, too")
    parser.add_argument("--variants", nargs="*", default=[PLAIN, PACKED], help="'plain', 'ours'")
    parser.add_argument("--within", nargs="*", default=[], help="also ours, with MODEL.MEMORY_GB")
    parser.add_argument("--memory-of", choices=("step", "text", "eval"), default="step")
    parser.add_argument("--backbone", type=Path, help="checkpoint; a random ViT-B/16 if not given")
    parser.add_argument("--out", type=output_file, default=OUT)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    add_traceback(parser)
    return parser


def act(args: argparse.Namespace) -> None:
    """Measure what was asked for, keep it, print all tables, fill the document."""
    if args.child:  # memory is that of a run; times are compared as PyTorch takes it by itself
        ask_for_large_pages()
    import torch

    torch.set_num_threads(1)
    if args.child:
        what, method, n_classes, backbone, variant = args.child
        print(json.dumps(measure_memory(what, method, int(n_classes), Path(backbone), variant)))
        return
    records = store(args.out, [])
    variants = args.variants + [f"{WITHIN}{size}" for size in args.within]
    with tempfile.TemporaryDirectory() as folder:
        backbone = args.backbone
        if backbone is None:
            backbone = Path(folder, "random_vit_b16.pt")
            save_random_clip(backbone)
        for what in args.what:
            for method in args.methods:
                for n in args.classes:
                    label = f"memory of {args.memory_of}" if what == "memory" else what
                    if what == "memory":
                        measure = {v: memory if v == PACKED else in_child for v in variants}
                        found = {
                            v: measure[v](args.memory_of, method, n, backbone, v) for v in variants
                        }
                    elif what == "cost":
                        found = {PACKED: measure_cost(method, n, backbone, args.repeats)}
                    elif what == "flops":
                        found = {v: count_flops(method, n, backbone, v) for v in variants}
                    else:
                        found = measure_time(
                            what, method, n, backbone, variants, args.repeats, not args.cold
                        )
                    records = store(
                        args.out,
                        [
                            dict(zip(KEYS, (label, method, n, variant), strict=True))
                            | record
                            | {"machine": machine()}
                            for variant, record in found.items()
                        ],
                    )
    print("\n".join(tables(records).values()))
    if args.out == OUT:
        from support.filled import fill_document

        machines = sorted({record["machine"] for record in records})
        fill_document(DOCUMENT, {**tables(records), "machine": "; ".join(machines) + ".\n"})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
