"""Write what a run learned as plain tensors: ``python -m tools.export RUN OUT.safetensors``.

Tensors of OUT, blocks counted from 0 (the input layer) and prompts in the order of their insertion:

* ``text_prompts.<block>.<i>`` ``(n, d_text)``, or ``(C, n, d_text)`` for class-specific contexts:
  prompt tokens as they enter the text encoder, before positions are added;
* ``image_prompts.<block>.<i>`` ``(n, d_vision)``: those of the image encoder;
* ``learner.<name>``: the trained tensors behind them, as in the checkpoint (low-rank factors, maps,
  ...);
* ``class_embeddings`` ``(C, embed_dim)`` float32, unit norm: the text features of the classes.

The metadata entry ``run`` is a JSON object: ``method``, ``backbone``, ``classnames``, ``config``
(YAML), ``logit_scale`` (factor of the cosine similarities), ``library`` (version of the toolbox),
``template`` (words around the class name), ``image_conditioned``, and ``places``, which says for
every prompt where it goes (``at``: index of its first token, null for the end; one per class where
it depends on the name) and how many tokens it removes there (``drop``); where they are not the
rule, also the share of the removed tokens that it takes up (``keep``), and that it enters block 0
behind the positional embedding (``embedded``).

``--classifier FILE`` writes the class embeddings alone, as a classifier for image features: a
``.npy`` with class names and scale in a ``.json`` beside it, or ``.safetensors`` (tensor
``weight``) with the same as metadata. Where text depends on the image (CoCoOp), or a head of the
method's own classifies, there is no such classifier: OUT has no class embeddings then, and
``--classifier`` is an error.

``--bundle DIR`` writes a folder that predicts without this toolbox: the image encoder as ONNX and
as a ``torch.export`` program, classifier, labels, preprocessing, a model card and ``predict.py``,
which needs onnxruntime, NumPy and Pillow only. docs/deploy.md has examples.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.command_line import output_file, run_command

from .command import (
    add_classes,
    add_skip_bad,
    find_images,
    load_run,
    quietly,
    read_images,
    read_names,
    run_parser,
    writing,
)

if TYPE_CHECKING:
    from torch import Tensor

    from clip.changes import LayerChanges
    from trainers import Predictor

#: metadata entry of the files; a single one, as safetensors writes several in random order
METADATA = "run"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = run_parser("Write learned prompts and class embeddings as safetensors.")
    add = parser.add_argument
    helped = "file for prompts and embeddings"
    add("out", nargs="?", type=output_file, metavar="OUT.safetensors", help=helped)
    helped = "class embeddings alone, .npy or .safetensors"
    add("--classifier", type=output_file, metavar="FILE", help=helped)
    add_classes(parser)
    add("--bundle", metavar="DIR", help="folder that predicts without this toolbox")
    add("--precision", choices=("fp32", "fp16", "int8"), help="of the bundle's encoder (fp32)")
    helped = "measure the bundle's differences to the run on these images or folders"
    add("--compare", nargs="+", metavar="IMAGE", help=helped)
    add_skip_bad(parser)
    helped = "put the text encoder into the bundle, for other class names"
    add("--text-encoder", action="store_true", help=helped)
    return parser


def check_suffix(path: Path | None, option: str, *allowed: str) -> None:
    """Check that the name of a file tells its format.

    Args:
        path: the file; nothing is checked without one.
        option: what named it, for the message.
        allowed: suffixes.

    Raises:
        ValueError: the file has another suffix.
    """
    if path is not None and path.suffix not in allowed:
        raise ValueError(f"{option}: {path} must end in {' or '.join(allowed)}")


def description(predictor: Predictor) -> dict[str, Any]:
    """Describe the run that exported tensors come from, as JSON-like values."""
    from adaptation.version import __version__
    from dassl.config import clean_cfg
    from dassl.engine import config_node

    cfg = predictor.cfg.clone()
    clean_cfg(cfg, cfg.TRAINER.NAME, config_node(cfg.TRAINER.NAME))
    return {
        "method": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "classnames": predictor.classnames,
        "logit_scale": float(predictor.model.logit_scale),
        "config": cfg.dump(),
        "library": __version__,
    }


def prompt_tensors(changes: LayerChanges | None, name: str) -> tuple[dict[str, Tensor], dict]:
    """Return tensors and places of the prompts of one encoder.

    Args:
        changes: as a learner gives them.
        name: start of the tensors' names.
    """
    from clip.changes import Changes

    tensors: dict[str, Tensor] = {}
    places: dict[str, dict[str, Any]] = {}
    for block, change in sorted(Changes.of(changes).blocks.items()):
        for i, prompt in enumerate(change.prompts):
            key = f"{name}.{block}.{i}"
            tensors[key] = prompt.tokens
            places[key] = {"at": prompt.at, "drop": prompt.drop}
            places[key] |= {"keep": prompt.keep} if prompt.keep else {}
            places[key] |= {"embedded": True} if prompt.embedded else {}
    return tensors, places


def class_embeddings(predictor: Predictor) -> Tensor:
    """Return the classifier ``(C, embed_dim)``, unit norm, float32.

    Raises:
        ValueError: the model's logits are no scaled cosine similarities to fixed embeddings.
    """
    import torch

    model = predictor.model
    # any image will do: what is exported must give the logits of the model
    image = torch.randn(1, 3, *predictor.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = model.predict(image.to(predictor.device))
        method, text = predictor.cfg.TRAINER.NAME, prediction.text_features
        if text.dim() == 3:
            raise ValueError(
                f"{method} computes its text features for each image: there are no fixed class "
                "embeddings to export as a classifier. Export the prompts (OUT.safetensors) instead"
            )
        if not torch.allclose(model.logits(prediction.image_features, text), prediction.logits):
            raise ValueError(
                f"{method} does not classify by its text features: there is no classifier of class "
                "embeddings to export. Export what it learned (OUT.safetensors) instead"
            )
    return text


def write_safetensors(tensors: dict[str, Tensor], notes: dict[str, Any], path: str | Path) -> None:
    """Write tensors with JSON-like notes; the file appears complete or not at all."""
    from safetensors.torch import save

    # each with memory of its own, as the format demands
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    content = save(tensors, metadata={METADATA: json.dumps(notes, sort_keys=True)})
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_prompts(predictor: Predictor, path: str | Path) -> list[str]:
    """Write prompts, learner and class embeddings; returns the names of the tensors."""
    learner, notes = predictor.model.learner, description(predictor)
    text, text_places = prompt_tensors(learner.text_changes(), "text_prompts")
    image, image_places = prompt_tensors(learner.image_changes(), "image_prompts")
    tensors = {**text, **image}
    tensors |= {f"learner.{key}": value for key, value in learner.state_dict().items()}
    try:
        tensors["class_embeddings"] = class_embeddings(predictor)
    except ValueError as reason:
        print(f"note: no class embeddings: {reason}", file=sys.stderr)
    notes |= {
        "template": learner.template,
        "image_conditioned": learner.image_conditioned,
        "places": {**text_places, **image_places},
    }
    write_safetensors(tensors, notes, path)
    return list(tensors)


def write_classifier(predictor: Predictor, path: str | Path) -> None:
    """Write the class embeddings as a matrix, with the class names in or beside the file."""
    import numpy as np

    weight, notes = class_embeddings(predictor), description(predictor)
    if Path(path).suffix == ".npy":
        # the names first: a matrix without them is of no use
        with writing(Path(path).with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(notes, indent=4), encoding="utf-8")
        with writing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, weight.cpu().numpy())
    else:
        write_safetensors({"weight": weight}, notes, path)


def export_bundle(args: argparse.Namespace, names: list[str] | None) -> None:
    """Write a bundle, and print its differences to the run where they were asked for."""
    from deploy import need

    need("--bundle", "onnx", "onnxscript", "onnxruntime")
    precision = args.precision or "fp32"
    if precision != "fp32" and not args.compare:
        raise ValueError(
            f"--precision {precision} changes the probabilities: add --compare IMAGE ..., to "
            "measure by how much"
        )
    if args.device not in (None, "cpu"):
        raise ValueError(
            f"--device is {args.device}: a bundle is of no device, and written on the CPU; leave "
            "the option out"
        )
    images = find_images(args.compare or [])

    from deploy.bundle import check_target, write_bundle

    check_target(args.bundle)
    args.device = "cpu"
    predictor = load_run(args.run, args, names, precision="fp32")
    if args.skip_bad:
        images = [path for path, _ in read_images(images, predictor.read, skip_bad=True)]
        if not images:
            raise ValueError("--compare: no image is left to compare on")
    with quietly(args):
        notes = write_bundle(
            predictor,
            args.bundle,
            args.run,
            precision=precision,
            text_encoder=args.text_encoder,
            compare=images,
        )
    print(f"{args.bundle}: {notes['method']}, {len(notes['labels'])} classes, {precision}")
    if found := notes["differences"]:
        print(
            f"compared with the run on {found['images']} images: same class on "
            f"{100 * found['agreement']:.2f} %, largest difference of a probability "
            f"{found['largest']:.2g}, mean {found['mean']:.2g}"
        )


def export(args: argparse.Namespace) -> None:
    """Write the files that the command line asks for."""
    if args.bundle is None and (args.precision or args.compare or args.text_encoder):
        raise ValueError("--precision, --compare and --text-encoder go with --bundle DIR")
    if args.skip_bad and not args.compare:
        raise ValueError("--skip-bad goes with --compare IMAGE ...")
    if args.out is None and args.classifier is None and args.bundle is None:
        raise ValueError(
            "nothing to write: name OUT.safetensors, --classifier FILE, --bundle DIR, or several"
        )
    check_suffix(args.out, "OUT", ".safetensors")
    check_suffix(args.classifier, "--classifier", ".npy", ".safetensors")
    names = None if args.classes is None else read_names(args.classes)
    if args.bundle is not None:
        export_bundle(args, names)
    if args.out is None and args.classifier is None:
        return
    predictor = load_run(args.run, args, names)
    if args.out is not None:
        print(f"{args.out}: {', '.join(write_prompts(predictor, args.out))}")
    if args.classifier is not None:
        write_classifier(predictor, args.classifier)
        print(f"{args.classifier}: classifier of {len(predictor.classnames)} classes")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), export))
