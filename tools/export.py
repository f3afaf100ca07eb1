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
it depends on the name) and how many tokens it removes there (``drop``).

``--classifier FILE`` writes the class embeddings alone, as a classifier for image features: a
``.npy`` with class names and scale in a ``.json`` beside it, or ``.safetensors`` (tensor
``weight``) with the same as metadata. Where text depends on the image (CoCoOp), or a head of the
method's own classifies, there is no such classifier: OUT has no class embeddings then, and
``--classifier`` is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.command_line import output_file, run_command

from .command import add_classes, load_run, read_names, run_parser, writing

if TYPE_CHECKING:
    from torch import Tensor

    from clip.changes import LayerPrompts
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
    return parser


def check_suffix(path: Path | None, option: str, *allowed: str) -> None:
    """Raises: ValueError: a file name whose format cannot be told from it."""
    if path is not None and path.suffix not in allowed:
        raise ValueError(f"{option}: {path} must end in {' or '.join(allowed)}")


def description(predictor: Predictor) -> dict[str, Any]:
    """What belongs to every exported tensor, as JSON-like values."""
    from adaptation.version import __version__
    from dassl.config import clean_cfg
    from dassl.engine import config_node

    cfg = predictor.cfg.clone()
    clean_cfg(cfg, cfg.TRAINER.NAME, config_node(cfg.TRAINER.NAME))
    return {
        "method": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "classnames": predictor.classnames,
        "logit_scale": float(predictor.model.clip.logit_scale.exp()),
        "config": cfg.dump(),
        "library": __version__,
    }


def prompt_tensors(prompts: LayerPrompts | None, name: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and places of the prompts of one encoder.

    Args:
        prompts: as a learner gives them.
        name: start of the tensors' names.
    """
    from clip.changes import by_layer

    tensors, places = {}, {}
    for block, entries in enumerate(by_layer(prompts, max(prompts or (-1,)) + 1)):
        for i, prompt in enumerate(entries):
            key = f"{name}.{block}.{i}"
            tensors[key] = prompt.tokens
            places[key] = {"at": prompt.at, "drop": prompt.drop}
    return tensors, places


def class_embeddings(predictor: Predictor) -> Tensor:
    """The classifier ``(C, embed_dim)``, unit norm, float32.

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
    text, text_places = prompt_tensors(learner.text_prompts(), "text_prompts")
    image, image_places = prompt_tensors(learner.image_prompts(), "image_prompts")
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


def export(args: argparse.Namespace) -> None:
    """Write the files that the command line asks for."""
    if args.out is None and args.classifier is None:
        raise ValueError("nothing to write: name OUT.safetensors, --classifier FILE, or both")
    check_suffix(args.out, "OUT", ".safetensors")
    check_suffix(args.classifier, "--classifier", ".npy", ".safetensors")
    names = None if args.classes is None else read_names(args.classes)
    predictor = load_run(args.run, args, names)
    if args.out is not None:
        print(f"{args.out}: {', '.join(write_prompts(predictor, args.out))}")
    if args.classifier is not None:
        write_classifier(predictor, args.classifier)
        print(f"{args.classifier}: classifier of {len(predictor.classnames)} classes")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), export))
