"""Bundles: folders that hold a run's classifier and predict without this toolbox."""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from adaptation.version import __version__
from clip.changes import Changes
from clip.simple_tokenizer import default_bpe, read_merges
from trainers import Predictor

from . import card, graphs, standalone
from .standalone.bundle import FORMAT, Bundle

#: what an encoder may be stored and computed in
PRECISIONS = ("fp32", "fp16", "int8")
#: largest difference of a probability to the run's own, of an encoder in fp32
TOLERANCE = 1e-4
#: images that are compared at once
AT_ONCE = 50
#: files of a bundle
ENCODER, PROGRAM, CLASSIFIER = "image_encoder.onnx", "image_encoder.pt2", "classifier.npy"
TEXT, FROZEN_TEXT, MERGES = "text_encoder.onnx", "frozen_text_encoder.onnx", "merges.txt.gz"
KNOWN = "known_classes.npy"


def check_target(folder: str | Path) -> None:
    """Check that a bundle can be written there.

    Raises:
        FileExistsError: something is there already.
    """
    path = Path(folder)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"--bundle: {folder} exists: name another folder, or remove it")


def preprocessing(predictor: Predictor) -> dict[str, Any]:
    """Describe the test transform of a run as data.

    Raises:
        ValueError: it has a step that a bundle does not know.
    """
    steps = list(getattr(predictor.transform, "transforms", []))
    kinds = [type(step) for step in steps]
    known = [T.Resize, T.CenterCrop, T.ToTensor]
    if kinds not in (known, [*known, T.Normalize]):
        names = ", ".join(kind.__name__ for kind in kinds) or "nothing"
        raise ValueError(
            f"the run's images go through {names}; a bundle can resize, crop and normalise them "
            "(INPUT.TRANSFORMS, INPUT.NO_TRANSFORM)"
        )
    resize, crop, *rest = steps
    normalize = rest[-1] if len(rest) > 1 else T.Normalize([0.0] * 3, [1.0] * 3)
    return {
        "resize": resize.size,
        "interpolation": resize.interpolation.value,
        "crop": list(crop.size),
        "mean": list(normalize.mean),
        "std": list(normalize.std),
    }


def _examples(predictor: Predictor, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, *predictor.cfg.INPUT.SIZE, generator=generator)


@torch.no_grad()
def class_matrix(predictor: Predictor) -> Tensor | None:
    """Return the text features ``(C, embed_dim)``, unit norm, that classify; None without such."""
    model, images = predictor.model, _examples(predictor)
    prediction = model.predict(images)
    text = prediction.text_features
    if text.dim() == 3:
        return None
    logits = model.logits(prediction.image_features, text)
    return text if torch.allclose(logits, prediction.logits) else None


def write_bundle(
    predictor: Predictor,
    folder: str | Path,
    run: str | Path,
    *,
    precision: str = "fp32",
    text_encoder: bool = False,
    compare: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a bundle; the folder appears complete or not at all.

    Its probabilities are compared with the predictor's on made-up pictures, and on those given.

    Args:
        predictor: of the run, on the CPU and in ``fp32``.
        folder: to write.
        run: folder of the run, whose record tells its accuracy.
        precision: one of ``PRECISIONS``. The program in PyTorch's format stays ``fp32`` for int8.
        text_encoder: whether to export the text encoder as well, for other class names.
        compare: images to measure the differences on.

    Returns:
        what ``bundle.json`` holds.

    Raises:
        FileExistsError: ``folder`` is there already.
        ValueError: the method cannot be exported, or the bundle's probabilities are wrong.
    """
    check_target(folder)
    how = preprocessing(predictor)
    with _complete_or_absent(Path(folder)) as place:
        classes = class_matrix(predictor)
        conditioned = predictor.model.learner.image_conditioned
        notes: dict[str, Any] = {
            "format": FORMAT,
            "method": predictor.cfg.TRAINER.NAME,
            "backbone": predictor.cfg.MODEL.BACKBONE.NAME,
            "labels": predictor.classnames,
            "logit_scale": float(predictor.model.logit_scale),
            "classifier": None if classes is None else CLASSIFIER,
            "preprocessing": how,
            "image_encoder": {
                "file": ENCODER,
                "precision": precision,
                # text that depends on the image is encoded for one image at a time
                "batch_size": 1 if conditioned else None,
                "output": "logits" if classes is None else "features",
            },
            "text_encoder": None,
            "library": __version__,
        }
        if classes is not None:
            np.save(place / CLASSIFIER, classes.numpy())
        if text_encoder:
            if classes is None:
                raise ValueError(
                    f"--text-encoder: {notes['method']}: it does not classify by text features "
                    "alone, which other names have"
                )
            notes["text_encoder"] = _write_text_encoder(predictor, place)
        _write_image_encoder(predictor, place, notes["image_encoder"])
        for name in ("bundle.py", "predict.py", *(["class_names.py"] * text_encoder)):
            shutil.copy(Path(standalone.__file__).with_name(name), place / name)
        _write_notes(notes, place)
        notes["differences"] = _check(predictor, place, precision, text_encoder, compare)
        _write_notes(notes, place)
        (place / "README.md").write_text(card.text(notes, predictor, run), encoding="utf-8")
    return notes


def _write_notes(notes: dict[str, Any], place: Path) -> None:
    content = json.dumps(notes, indent=1, ensure_ascii=False) + "\n"
    (place / "bundle.json").write_text(content, encoding="utf-8")


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.with_name(f"{folder.name}.tmp{uuid.uuid4().hex}")
    place.mkdir()
    try:
        yield place
        place.replace(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write_image_encoder(predictor: Predictor, place: Path, notes: dict[str, Any]) -> None:
    model, in_half = predictor.model, notes["precision"] == "fp16"
    images = _examples(predictor, notes["batch_size"] or 2)
    with torch.no_grad():
        model(images)  # what is computed once is a constant of the graph
    encoder = graphs.ImageEncoder(model, logits=notes["output"] == "logits", in_half=in_half)
    program = graphs.export_program(encoder, {"image": images}, free=notes["batch_size"] is None)
    graphs.write_program(program, place / PROGRAM)
    graphs.write_onnx(program, notes["output"], place / ENCODER)
    if notes["precision"] == "int8":
        graphs.quantise(place / ENCODER)


def _write_text_encoder(predictor: Predictor, place: Path) -> dict[str, Any]:
    """Write the text encoder and its vocabulary.

    Raises:
        ValueError: the method's text prompts allow no other names.
    """
    model = predictor.model
    length = model.clip.context_length
    tokens = torch.zeros(2, length, dtype=torch.long)
    tokens[:, 0], tokens[:, 1] = 1, 2
    try:
        encoder = graphs.TextEncoder(model)
        reads_frozen = graphs.reads_frozen_text(encoder, tokens)
    except ValueError as error:
        raise ValueError(f"--text-encoder: {predictor.cfg.TRAINER.NAME}: {error}") from error
    inputs, frozen = {"tokens": tokens}, None
    if reads_frozen:
        frozen = FROZEN_TEXT
        program = graphs.export_program(graphs.TextEncoder(model, learned=False), inputs)
        graphs.write_onnx(program, "features", place / frozen)
        inputs = {**inputs, "frozen": torch.randn(2, model.clip.text_projection.shape[1])}
    program = graphs.export_program(encoder, inputs)
    graphs.write_onnx(program, "features", place / TEXT)
    write_merges(place / MERGES)
    known = model.learner.class_features()
    if known:
        np.save(place / KNOWN, torch.stack(list(known.values())).detach().numpy())
    at_the_input = Changes.of(model.learner.text_changes()).at_input
    return {
        "file": TEXT,
        "merges": MERGES,
        "template": model.learner.template,
        "context_length": length,
        "n_learned": sum(prompt.growth for prompt in at_the_input),
        "frozen": frozen,
        "templates": list(model.teacher_templates) if frozen else [],
        # classes whose features are no texts', and the file of these
        "known": {"file": KNOWN, "names": list(known)} if known else None,
    }


def write_merges(path: Path) -> None:
    """Write the merges of CLIP's vocabulary, one pair a line, gzipped."""
    lines = "".join(f"{first} {second}\n" for first, second in read_merges(default_bpe()))
    path.write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))


def _made_up() -> list[Image.Image]:
    """Make pictures of several shapes and kinds."""
    noise = np.random.default_rng(0)
    sizes = ((40, 30, 3), (300, 451, 3), (97, 64, 4))
    pictures = [Image.fromarray(noise.integers(0, 256, size, np.uint8)) for size in sizes]
    return [*pictures, pictures[0].convert("L"), pictures[1].convert("P")]


def differences(predictor: Predictor, bundle: Bundle, images: Sequence[Any]) -> dict[str, Any]:
    """Compare the probabilities of a bundle with those of its run.

    Args:
        predictor: of the run.
        bundle: of that run.
        images: paths or pictures.

    Returns:
        ``images``, their number; ``agreement``, the share of them with the same most probable
        class, 0 to 1; ``largest`` and ``mean`` difference of a probability.
    """
    agree, largest, total = 0, 0.0, 0.0
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        batch = torch.stack([predictor.read(image) for image in part])
        own = predictor.probabilities(batch).numpy()
        found = bundle.probabilities(np.stack([bundle.read(image) for image in part]))
        agree += int((own.argmax(axis=1) == found.argmax(axis=1)).sum())
        largest = max(largest, float(np.abs(own - found).max()))
        total += float(np.abs(own - found).mean(axis=1).sum())
    n = len(images)
    return {"images": n, "agreement": agree / n, "largest": largest, "mean": total / n}


def _check(
    predictor: Predictor, place: Path, precision: str, text_encoder: bool, compare: Sequence[str]
) -> dict[str, Any] | None:
    """Compare a bundle with its run; return the differences on given images, None without any.

    Raises:
        ValueError: they are larger than rounding explains.
    """
    bundle = Bundle(place)
    checked = [differences(predictor, bundle, _made_up())] if precision == "fp32" else []
    given = differences(predictor, bundle, compare) if compare else None
    if given and precision == "fp32":
        checked.append(given)
    if text_encoder:
        own: Any = bundle.classifier
        bundle.set_classes(predictor.classnames)
        checked.append({"largest": float(np.abs(bundle.classifier - own).max())})
    worst = max((entry["largest"] for entry in checked), default=0.0)
    if not worst <= TOLERANCE:
        raise ValueError(
            f"the exported model differs from the run by {worst:.2g}, more than {TOLERANCE}: "
            "nothing was written"
        )
    return given
