"""The model card of a bundle: what it is, what it was trained on, and what it may be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip.clip import available_models
from clip.tiny import URLS as EMBEDDED
from dassl.config import CfgNode
from dassl.utils import count_num_param
from results import record
from results.labels import dataset_title
from trainers import Predictor

#: longest list of labels that is printed whole
SHOWN = 30


def licence(backbone: str) -> str:
    """Say what is known about the terms of a backbone's weights."""
    if backbone in EMBEDDED:
        return "The backbone comes with the toolbox that wrote this, under its licence."
    if backbone in available_models():
        return (
            "OpenAI published the backbone's weights with code under the MIT licence; its model "
            "card for CLIP calls deployed use out of scope, as the model was not tested for it. "
            "Test it for yours."
        )
    if backbone.startswith("open_clip:"):
        return "The backbone's weights are of open_clip; the page of these weights has the licence."
    return f"The backbone is the file `{backbone}`; its licence is that of whoever published it."


def _title(cfg: CfgNode, found: dict[str, Any] | None) -> str:
    return dataset_title(cfg, found and found["arguments"])


def _images(cfg: CfgNode, found: dict[str, Any] | None) -> str:
    """Say how many images of a class were asked for, and how many there were."""
    shots, counts = cfg.DATASET.NUM_SHOTS, found and found["images_per_class"]
    asked = "all images per class" if shots < 1 else f"{shots} shots per class"
    if not counts or counts["least"] == counts["most"] == shots:
        return asked
    least, most = counts["least"], counts["most"]
    each = f"{most}" if least == most else f"{least} to {most}"
    return f"{asked} ({'' if shots < 1 else 'there were '}{each})"


def _training(predictor: Predictor, found: dict[str, Any] | None) -> list[str]:
    cfg = predictor.cfg
    n_trained = count_num_param(predictor.model.learner)
    images = f"{_images(cfg, found)}, " if n_trained else ""
    lines = [
        f"* method: {cfg.TRAINER.NAME}, {n_trained:,} trained parameters",
        f"* backbone: {cfg.MODEL.BACKBONE.NAME}, frozen",
        f"* data: {_title(cfg, found)}, {images}classes `{cfg.DATASET.SUBSAMPLE_CLASSES}`, "
        f"seed {cfg.SEED}",
    ]
    if found is None or found["result"] is None:
        return [*lines, "* accuracy: not known, the run's folder has no result.json with a test"]
    result, names = found["result"], (found["data"]["classes"] or {}).get("names")
    metrics = result["metrics"]
    lines.append(
        f"* accuracy of the run: {metrics['accuracy']:.2f} % on {result['total']} images of "
        f"`{result['split']}`"
        + (f", macro-F1 {metrics['macro_f1']:.2f} %" if "macro_f1" in metrics else "")
    )
    if names != predictor.classnames:
        lines.append("* the classes here are others, for which no accuracy was measured")
    return lines


def _differences(notes: dict[str, Any]) -> list[str]:
    precision, found = notes["image_encoder"]["precision"], notes["differences"]
    lines = [f"The image encoder computes in {precision}."]
    if precision == "fp32":
        lines.append("On made-up pictures its probabilities equal the run's within 1e-4.")
    if found:
        lines.append(
            f"On {found['images']} given images: the same most probable class as the run on "
            f"{100 * found['agreement']:.2f} % of them, largest difference of a probability "
            f"{found['largest']:.2g}, mean {found['mean']:.2g}."
        )
    return lines


def text(notes: dict[str, Any], predictor: Predictor, run: str | Path) -> str:
    """Return the card as Markdown.

    Args:
        notes: what ``bundle.json`` holds.
        predictor: of the run.
        run: its folder.

    Raises:
        BadRecord: the run's record is damaged.
    """
    labels, found = notes["labels"], record.read(run)
    shown = ", ".join(label.replace("_", " ") for label in labels[:SHOWN])
    more = f", and {len(labels) - SHOWN} more (`bundle.json`)" if len(labels) > SHOWN else ""
    files = [
        f"* `{notes['image_encoder']['file']}`: the adapted image encoder as ONNX; pictures in, "
        f"{notes['image_encoder']['output']} out",
        "* `image_encoder.pt2`: the same for `torch.export.load`",
        "* `bundle.json`: labels, preprocessing, logit scale and all else that is needed",
        "* `bundle.py`, `predict.py`: the classifier, and a command",
    ]
    if notes["classifier"]:
        files.append(f"* `{notes['classifier']}`: text features of the classes, one row each")
    if notes["text_encoder"]:
        files.append("* `text_encoder.onnx`, `merges.txt.gz`, `class_names.py`: other class names")
        if notes["text_encoder"]["known"]:
            files.append("* `known_classes.npy`: what was learned for each class of the training")
    if notes["image_encoder"]["batch_size"]:
        files.append("* text depends on the image, which is why pictures go through one by one")
    parts = [
        f"# {notes['method']} on {_title(predictor.cfg, found)}",
        f"A classifier of pictures among {len(labels)} classes: {shown}{more}.",
        "## Use",
        "```bash\npip install onnxruntime numpy Pillow\npython predict.py picture.jpg\n```",
        "```python\nfrom bundle import Bundle\n\nbundle = Bundle()\n"
        'print(bundle.labels, bundle.probabilities(bundle.read("picture.jpg")[None]))\n```',
        "Probabilities are shares among these classes, whatever a picture shows.",
        "## Training",
        "\n".join(_training(predictor, found)),
        "## Precision",
        " ".join(_differences(notes)),
        "## Files",
        "\n".join(files),
        "## Licence",
        licence(notes["backbone"])
        + (" CLIP's vocabulary is OpenAI's, MIT licence." if notes["text_encoder"] else ""),
        f"Written by version {notes['library']} of the toolbox.",
    ]
    return "\n\n".join(parts) + "\n"
