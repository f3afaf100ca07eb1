"""Hand-written text templates: those of ImageNet's ensembles and of the data sets.

Source: the prompt-engineering notebook and prompt list of OpenAI's CLIP repository (MIT),
in the order of CoOp's and PromptSRC's code. Their grammar ("a origami") is original.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from support.documents import parse_yaml
from support.files import as_text, read_bytes

#: template of a data set that has none of its own, and the text that most prompts start from
DEFAULT_TEMPLATE = "a photo of a {}."

#: the 80 ImageNet templates
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

#: the 7 of them that forward selection on ImageNet picks
IMAGENET_TEMPLATES_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

#: the 60 over which text teachers average: "a photo of a {}." first, the last 20 left out
TEACHER_TEMPLATES = (
    IMAGENET_TEMPLATES[39],
    *IMAGENET_TEMPLATES[:39],
    *IMAGENET_TEMPLATES[40:60],
)


def dataset_template(name: str, instead: Mapping[str, str] | None = None) -> str:
    """Return the zero-shot template of the data set registered as ``name``.

    It is the attribute ``template`` of its class, or else :data:`DEFAULT_TEMPLATE`.

    Args:
        name: of the data set.
        instead: data set -> the text that a method reads in the place of that.

    Raises:
        ValueError: it is not a text with one ``{}``.
    """
    if instead and name in instead:
        return instead[name]
    template = getattr(_dataset_class(name), "template", None)
    return DEFAULT_TEMPLATE if template is None else _checked(template, f"data set {name}")


def ensemble_templates(name: str) -> tuple[str, ...]:
    """Return the templates of the zero-shot ensemble on the data set registered as ``name``.

    These are ImageNet's seven selected ones and the data set's own, unless its class says
    ``template_in_ensemble = False``.
    """
    if getattr(_dataset_class(name), "template_in_ensemble", True):
        return *IMAGENET_TEMPLATES_SELECT, dataset_template(name)
    return IMAGENET_TEMPLATES_SELECT


def classifier_templates(name: str) -> tuple[str, ...]:
    """Return the templates that TaskRes and CLAP average raw features over.

    On ImageNet these are the seven selected ones and its own, elsewhere the data set's own alone.
    """
    if name == "ImageNet":
        return *IMAGENET_TEMPLATES_SELECT, dataset_template(name)
    return (dataset_template(name),)


def _dataset_class(name: str) -> Any:
    if name:  # prediction has no data set and needs no import
        import datasets  # noqa: F401  registers them

    return DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY else None


def given_templates(entries: Iterable[str], folder: str) -> tuple[str, ...]:
    """Return the templates of a configuration (DATASET.TEMPLATES).

    Args:
        entries: texts with one ``{}``, or names of files of such texts: YAML files hold a list,
            others one text per line (empty lines and ``#`` comments do not count).
        folder: folder that file names are relative to.

    Raises:
        ValueError: a text without exactly one ``{}``, or a file that cannot be read.
        FileNotFoundError: neither a template nor an existing file.
    """
    templates: list[str] = []
    for entry in entries:
        if "{" in entry or "}" in entry:
            templates.append(_checked(entry, "DATASET.TEMPLATES"))
            continue
        path = os.path.join(folder, os.path.expanduser(entry))
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"DATASET.TEMPLATES: {entry!r} has no {{}} for the class name, and there is no "
                f"file {path}"
            )
        texts = _read_file(path)
        if not texts:
            raise ValueError(f"{path} holds no template")
        templates += [_checked(text, path) for text in texts]
    return tuple(templates)


def _read_file(path: str) -> list[str]:
    content = read_bytes(path)
    try:
        text = as_text(content)
        if not path.lower().endswith((".yaml", ".yml")):
            lines = [line.strip() for line in text.splitlines()]
            return [line for line in lines if line and not line.startswith("#")]
        texts = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(texts, list):
        raise ValueError(f"{path} must be a list of templates, one '- text' per line")
    return texts


def _checked(text: object, where: str) -> str:
    if (
        not isinstance(text, str)
        or text.count("{}") != 1
        or set("{}") & set(text.replace("{}", ""))
    ):
        raise ValueError(f"{where}: the template {text!r} must have one {{}}, for the class name")
    return text
