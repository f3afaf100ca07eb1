"""Captions of rendered images, and which images a caption is true of.

A caption names some attributes of its image at random. It is a positive of every image that has
these attributes, so a batch has as many positives as its captions happen to allow.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from adaptation.templates import IMAGENET_TEMPLATES
from pretrain.images import (
    COLOUR_NAMES,
    FILLS,
    KINDS,
    NONE,
    OBJECTS,
    SHAPES,
    Attribute,
)

#: words of a template that are a statement about the image
STATEMENTS = {
    "black and white": (Attribute.GRAYSCALE, 1),
    "blurry": (Attribute.QUALITY, 1),
    "pixelated": (Attribute.QUALITY, 2),
    "dark photo": (Attribute.TONE, 1),
    "bright photo": (Attribute.TONE, 2),
    "photo of many": (Attribute.MANY, 1),
    "photo of one": (Attribute.COUNT, 0),
    "large": (Attribute.SIZE, 2),
    "small": (Attribute.SIZE, 0),
    "low resolution": (Attribute.QUALITY, 2),
}
PLURAL_TEMPLATES = ("{}.", "a photo of {}.", "an image of {}.")
DEFAULT_TEMPLATE = "a photo of a {}."
NUMBERS = ("one", "two", "three", "four")
BACKGROUNDS = (*COLOUR_NAMES, "gradient", "noisy")


def stated(template: str) -> list[tuple[Attribute, int]]:
    """Return the attributes that a template states, with their values."""
    return [value for words, value in STATEMENTS.items() if words in template]


_STATED = sorted({attribute for attribute, _ in STATEMENTS.values()})


@cache
def _true_templates(values: tuple[int, ...]) -> list[tuple[str, list[tuple[Attribute, int]]]]:
    """Return the templates that are true of an image with these values of their attributes."""
    have = dict(zip(_STATED, values, strict=True))
    candidates = [(template, stated(template)) for template in IMAGENET_TEMPLATES]
    return [(t, facts) for t, facts in candidates if all(have[a] == v for a, v in facts)]


def _noun(rng: np.random.Generator, attributes: np.ndarray, named: np.ndarray) -> str:
    member, kind = attributes[Attribute.OBJECT], attributes[Attribute.KIND]
    word = OBJECTS[member]
    named[Attribute.OBJECT] = member
    draw = rng.random()
    if kind == 0:
        noun = word
    else:
        named[Attribute.KIND] = kind
        if kind == 3:
            noun = f"{word} symbol" if draw < 0.2 else word
        elif kind == 2:
            noun = f"letter {word}" if draw < 0.8 else word
        elif draw < 0.35:
            noun = word
        elif draw < 0.65:
            noun = f"digit {word}"
        elif draw < 0.85:
            noun = f"number {word}"
        else:
            noun = str(member - len(SHAPES))
    if rng.random() < 0.06:  # its kind only
        noun = KINDS[kind]
        named[Attribute.OBJECT], named[Attribute.KIND] = NONE, kind
    return noun


def caption(rng: np.random.Generator, attributes: np.ndarray) -> tuple[str, np.ndarray]:
    """Draw a true caption of an image.

    Args:
        rng: random generator.
        attributes: ``(len(Attribute),)``, as ``pretrain.images.render`` gives them.

    Returns:
        the text, and the attributes that it names ``(len(Attribute),)``, ``NONE`` elsewhere.
    """
    named = np.full(len(Attribute), NONE)
    noun = _noun(rng, attributes, named)
    words = []
    if attributes[Attribute.FILL] >= 0 and rng.random() < 0.25:
        named[Attribute.FILL] = attributes[Attribute.FILL]
        words.append(FILLS[attributes[Attribute.FILL]])
    often = 0.75 if attributes[Attribute.KIND] == 0 else 0.3
    if attributes[Attribute.COLOUR] >= 0 and rng.random() < often:
        named[Attribute.COLOUR] = attributes[Attribute.COLOUR]
        words.append(COLOUR_NAMES[attributes[Attribute.COLOUR]])
    phrase = " ".join([*words, noun])
    draw = rng.random()
    plural = attributes[Attribute.COUNT] > 0 and draw < 0.3
    if plural:
        named[Attribute.COUNT] = attributes[Attribute.COUNT]
        phrase = f"{NUMBERS[attributes[Attribute.COUNT]]} {phrase}s"
    if rng.random() < 0.2 and attributes[Attribute.BACKGROUND] >= 0:
        named[Attribute.BACKGROUND] = attributes[Attribute.BACKGROUND]
        phrase += f" on a {BACKGROUNDS[attributes[Attribute.BACKGROUND]]} background"
    if plural:
        template = PLURAL_TEMPLATES[rng.integers(len(PLURAL_TEMPLATES))]
    elif rng.random() < 0.3:
        template = DEFAULT_TEMPLATE
    else:
        true = _true_templates(tuple(attributes[_STATED].tolist()))
        template, facts = true[rng.integers(len(true))]
        for attribute, value in facts:
            named[attribute] = value
    return template.format(phrase), named


def matches(named: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Tell whether caption ``j`` is true of image ``i``: ``(images, captions)`` booleans.

    Args:
        named: ``(captions, len(Attribute))``.
        attributes: ``(images, len(Attribute))``.
    """
    return ((named[None] == NONE) | (named[None] == attributes[:, None])).all(-1)


def vocabulary() -> list[str]:
    """Return texts that together hold every token of captions, templates and class names."""
    words = [*OBJECTS, *KINDS, *FILLS, *BACKGROUNDS, *NUMBERS, "background", "on", "X"]
    words += [f"{word}s" for word in (*OBJECTS, *KINDS)] + [str(n) for n in range(10)]
    texts = [
        *IMAGENET_TEMPLATES,
        *PLURAL_TEMPLATES,
        "number {}",
        "letter {}",
        "digit {}",
        "{} symbol",
    ]
    return [*words, *(text.format("X") for text in texts)]
