"""Train methods and lay out what they learned as a model zoo: ``python -m scripts.model_zoo OUT``.

By default every method that trains is trained with its shipped config on the embedded digits, 16
images per class, seed 1: some minutes on a CPU. ``--runs`` holds these runs; the same command goes
on with them where it was broken off. OUT gets::

    index.json               all entries
    <method>/README.md       model card: paper, data, measured accuracy, how to use it
    <method>/entry.json      its line of the index
    <method>/config.yaml     the whole config; --config-file takes it
    <method>/result.json     record of the run (docs/results.md); names the machine it was made on
    <method>/<learner>/      what was learned, as the run saved it
    <method>/upstream/       the same as published code of the method saves it, where that is known;
                             where it saves all of CLIP as well, with --whole only
    <method>/SHA256SUMS      of all these files

An entry is a run folder: ``predict.py``, ``serve.py``, ``train.py --eval-only`` and
``tools.export`` take it as ``--model-dir`` or RUN. It appears whole or not at all. ``--check``
compares all files of a zoo with their checksums.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.methods import DATASETS, ROOT, Method, find_method, method_names, one_of, stems
from support.command_line import add_traceback, positive, run
from support.files import sha256_of, write_json

INDEX, ENTRY, SUMS = "index.json", "entry.json", "SHA256SUMS"
#: data set that the embedded backbone is made for, and its class images
DATA, SHOTS = "digits", 16


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Train methods and lay them out as a model zoo.")
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="folder of the zoo")
    add("--check", action="store_true", help="compare the files of a zoo with their checksums")
    helped = "methods, with commas between them (default: all that train)"
    add("--methods", type=lambda text: text.split(","), metavar="NAME,...", help=helped)
    add("--data", default=DATA, metavar="NAME", help=f"of {DATASETS.as_posix()}/ ({DATA})")
    add("--root", default="data", metavar="DIR", help="folder that holds the data sets (data)")
    add("--shots", type=positive, default=SHOTS, metavar="N", help=f"images per class ({SHOTS})")
    add("--seed", type=int, default=1, metavar="N", help="seed (1)")
    helped = "folder of the runs (default: output/model_zoo)"
    add("--runs", type=Path, default=Path("output", "model_zoo"), metavar="DIR", help=helped)
    helped = "also files of published code that hold all weights of CLIP once more"
    add("--whole", action="store_true", help=helped)
    add_traceback(parser)
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys and values")
    return parser


def train_method(method: Method, args: argparse.Namespace) -> Path:
    """Train and test a method, or go on with its run.

    Args:
        method: to train.
        args: the parsed command line.

    Returns:
        its run folder.

    Raises:
        ValueError: the run ended with an error, which was printed.
    """
    import train

    folder = args.runs / f"{args.data}_{args.shots}shots" / method.name / f"seed{args.seed}"
    config = method.config_file(method.config_for("fewshot", args.data, str(args.shots)))
    words = ["--trainer", method.trainer, "--root", args.root, "--seed", str(args.seed), "--quiet"]
    words += ["--dataset-config-file", str(ROOT / DATASETS / f"{args.data}.yaml")]
    words += ["--config-file", str(ROOT / config), "--output-dir", str(folder)]
    with contextlib.redirect_stdout(sys.stdout):  # the run's log takes its place
        status = train.main([*words, "DATASET.NUM_SHOTS", str(args.shots), *args.opts])
    if status:
        raise ValueError(f"{method.name}: the training ended with an error, which is printed above")
    return folder


def describe(name: str, run_folder: Path) -> dict[str, Any]:
    """Return the line of the index for a run.

    Args:
        name: of the entry.
        run_folder: folder of a finished and tested run.
    """
    from dassl.engine import TRAINER_REGISTRY
    from results.record import read
    from scripts.listing import line_of, paper_of

    record = read(run_folder)
    if record is None or record["result"] is None:
        raise ValueError(f"{run_folder} has no result.json of a run that was tested")
    trainer = TRAINER_REGISTRY.get(record["method"])
    result = record["result"]
    return {
        "name": name,
        "method": record["method"],
        "what": line_of(trainer),
        "paper": paper_of(trainer),
        "backbone": record["config"]["MODEL"]["BACKBONE"]["NAME"],
        "data": record["data"]["name"],
        "classes": record["data"]["classes"]["names"],
        "shots": record["shots"],
        "seed": record["seed"],
        "epoch": record["model"]["epoch"],
        "parameters": record["parameters"],
        "accuracy": result["metrics"]["accuracy"],
        "images": result["total"],
        "split": result["split"],
        "version": record["versions"]["library"],
    }


def card(entry: dict[str, Any], upstream: str) -> str:
    """Return the model card of an entry, as Markdown.

    Args:
        entry: its line of the index.
        upstream: the sentence on what published code reads.
    """
    from deploy.card import licence

    classes = ", ".join(name.replace("_", " ") for name in entry["classes"][:30])
    more = len(entry["classes"]) - 30
    shots = "all images" if entry["shots"] is None else f"{entry['shots']} images per class"
    lines = [
        f"# {entry['method']} on {entry['data']}",
        "",
        f"{entry['method']}: {entry['what']}.",
        entry["paper"] and f"Paper: {entry['paper']}.",
        "",
        f"* trained on: {entry['data']}, {shots}, seed {entry['seed']}, epochs: {entry['epoch']}",
        f"* classes: {classes}{f', and {more} more' if more > 0 else ''}",
        f"* backbone: {entry['backbone']}, frozen; trained parameters: {entry['parameters']:,}",
        f"* accuracy: {entry['accuracy']:.2f} % on {entry['images']:,} images of "
        f"`{entry['split']}` (`result.json`); one run, measured once",
        "",
        "```bash",
        "python predict.py --model-dir THIS_FOLDER picture.png",
        "python train.py --eval-only --model-dir THIS_FOLDER \\",
        "  --config-file THIS_FOLDER/config.yaml --output-dir ELSEWHERE",
        "sha256sum -c SHA256SUMS    # in this folder",
        "```",
        "",
        upstream,
        licence(entry["backbone"]),
        "",
        f"Written by version {entry['version']} of the toolbox.",
    ]
    return "\n".join(line for line in lines if line is not None) + "\n"


def write_upstream(method: str, run_folder: Path, place: Path, whole: bool) -> str:
    """Write a run as published code of its method saves it, where that is known.

    Args:
        method: registry name.
        run_folder: of the run.
        place: folder to write.
        whole: also where that code saves the whole model, with the weights of CLIP.

    Returns:
        what to say of it.
    """
    from tools.to_upstream import LAYOUTS, build_parser, convert

    layout = LAYOUTS.get(method)
    if layout is None:
        return "How published code of the method saves it is not known here."
    if layout.whole and not whole:
        return (
            "Published code of the method saves it with all weights of CLIP; that file is left out "
            "here, and `python -m tools.to_upstream THIS_FOLDER OUT` writes it."
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it names the temporary place
        convert(build_parser().parse_args([str(run_folder), str(place)]))
    return f"`{place.name}/` is a run folder for the published code of the method."


def write_entry(name: str, run_folder: Path, out: Path, whole: bool = False) -> dict[str, Any]:
    """Lay out a run as an entry of a zoo, in place of an earlier one of this name.

    Args:
        name: of the entry, and of its folder.
        run_folder: folder of a finished and tested run.
        out: folder of the zoo.
        whole: as for :func:`write_upstream`.

    Returns:
        the line of the index.
    """
    from adaptation.checkpoints import find_checkpoint
    from adaptation.recording import CONFIG_FILE
    from dassl.utils.checkpoint import POINTER
    from results.record import FILE as RECORD

    entry = describe(name, run_folder)
    checkpoint = Path(find_checkpoint(str(run_folder)))
    out.mkdir(parents=True, exist_ok=True)
    place = out / f"{name}.tmp{uuid.uuid4().hex}"
    try:
        learner = place / checkpoint.parent.name
        learner.mkdir(parents=True)
        shutil.copy(checkpoint, learner)
        (learner / POINTER).write_text(f"{checkpoint.name}\n", encoding="utf-8")
        for file in (CONFIG_FILE, RECORD):
            shutil.copy(run_folder / file, place)
        upstream = write_upstream(entry["method"], run_folder, place / "upstream", whole)
        (place / "README.md").write_text(card(entry, upstream), encoding="utf-8")
        write_json(entry, place / ENTRY, indent=1)
        sums = "".join(f"{sha256_of(place / path)}  {path}\n" for path in files_of(place))
        (place / SUMS).write_text(sums, encoding="utf-8")
        if (out / name).exists():
            shutil.rmtree(out / name)
        place.replace(out / name)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return entry


def files_of(folder: Path) -> list[str]:
    """Return the files of an entry but for their checksums, sorted, with slashes."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path != SUMS)


def write_index(out: Path) -> list[dict[str, Any]]:
    """Write the index of a zoo from its entries, and return it."""
    entries = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob(f"*/{ENTRY}"))]
    write_json(entries, out / INDEX, indent=1)
    return entries


def check(out: Path) -> int:
    """Compare the files of a zoo with their checksums.

    Returns:
        the number of files.

    Raises:
        FileNotFoundError: there is no zoo.
        ValueError: a file is missing, is another, or is not listed; names the first.
    """
    index = out / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{out} is no zoo: it has no {INDEX}")
    number = 0
    for entry in json.loads(index.read_text("utf-8")):
        folder = out / entry["name"]
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
        for path in sorted({*sums, *files_of(folder)}):
            if path not in sums:
                raise ValueError(
                    f"{folder / path} is not in {SUMS}: remove it, or make the zoo anew"
                )
            if not (folder / path).is_file() or sha256_of(folder / path) != sums[path]:
                raise ValueError(
                    f"{folder / path} is not what was written: {SUMS} there has another checksum. "
                    "Make the entry anew, or fetch it again"
                )
        number += len(sums)
    return number


def chosen(names: Sequence[str] | None) -> list[Method]:
    """Return the methods of some names, or all that train.

    Raises:
        ValueError: there is no such method, or it has nothing to train.
    """
    methods = [find_method(name) for name in names or method_names()]
    if names is None:
        return [method for method in methods if method.trains]
    for method in methods:
        if not method.trains:
            raise ValueError(f"--methods: {method.name} learns nothing that a zoo could hold")
    return methods


def make(args: argparse.Namespace) -> None:
    """Make or check the zoo that the command line asks for."""
    if args.check:
        print(f"{args.out}: {check(args.out)} files are what was written")
        return
    one_of(args.data, stems(DATASETS), "data set")
    for method in chosen(args.methods):
        entry = write_entry(method.name, train_method(method, args), args.out, args.whole)
        print(f"{args.out / method.name}: {entry['method']}, {entry['accuracy']:.2f} %", flush=True)
        write_index(args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status, that of ``support.command_line.run``.
    """
    args = build_parser().parse_intermixed_args(argv)
    return run(lambda: make(args), args.traceback)


if __name__ == "__main__":
    sys.exit(main())
