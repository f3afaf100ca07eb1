"""Figures of matplotlib as parts of an HTML page: themed by its style sheet, with real text."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ..plots import PALETTE

#: colour of the palette -> what stands for it on a dark page, where some would be too dark
DARK = {
    "#CC3311": "#ff7f66",
    "#225555": "#5fa3a3",
    "#CC6677": "#e28a98",
    "#332288": "#9a91ee",
    "#DDCC77": "#ddcc77",
    "#117733": "#4fbf78",
    "#88CCEE": "#88ccee",
    "#882255": "#d678aa",
    "#44AA99": "#5fc9b7",
    "#999933": "#bdbd55",
    "#AA4499": "#d67fca",
}
#: what stands for the accent of the page in a figure
ACCENT = "#2457a6"
_SPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
# What XML cannot hold.
_INVALID = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
# As matplotlib writes them, in lower case.
_COLOURS = {colour.lower(): f"var(--c{colour[1:].lower()})" for colour in PALETTE} | {
    "#000000": "currentColor",
    "#ffffff": "var(--surface)",
    "#bfbfbf": "var(--line)",  # lines of equal H
    "#b0b0b0": "var(--line)",  # grid
    ACCENT: "var(--accent)",
}


def shown(text: object, most: int = 0) -> str:
    """Return a text from outside for a page: one line, without characters that act on others.

    Control characters, overrides of the direction of writing and what is no text become a mark.

    Args:
        text: a name of a class, a file, a run.
        most: largest number of characters, beyond which it is cut; 0 for any.
    """
    marked = "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in "\u202a\u202b\u202c\u202d\u202e"
        "\u2066\u2067\u2068\u2069" else c
        for c in str(text)
    )  # fmt: skip
    return f"{marked[: most - 1]}…" if most and len(marked) > most else marked


@contextmanager
def page_style() -> Iterator[None]:
    """Let matplotlib draw figures for :func:`to_svg`: they are made and written in the block."""
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",  # equal figures are equal texts
        "text.parse_math": False,  # names may have dollar signs
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 8.5,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # the reader's browser has other fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def to_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Return a figure as an ``svg`` element.

    Colours of the palette are ``var(--cRRGGBB)``, black is ``currentColor``, white
    ``var(--surface)`` and light grey ``var(--line)``.

    Args:
        figure: drawn in :func:`page_style`.
        prefix: begins its ids, so that they differ from those of other figures.
        alt: what it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(_INVALID.sub("\ufffd", buffer.getvalue()))
    for element in list(root):
        if element.tag == f"{_SPACE}metadata":
            root.remove(element)
    # A style element would be one of the whole page.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SPACE}style":
                parent.remove(child)
    used = set()
    for element in root.iter():
        used.add(element.attrib.get(_LINK, "").removeprefix("#"))
        for value in element.attrib.values():
            used |= set(_REFERENCE.findall(value))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SPACE)
        element.tail = None
        if element.tag != "text":
            element.text = None
        _rewrite(element.attrib, prefix, used)
        if element.tag == "text":  # what is light for a line is too light for words
            style = element.attrib.get("style", "")
            element.attrib["style"] = style.replace("var(--line)", "var(--muted)")
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": alt,
        "stroke-linejoin": "round",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(attributes: dict[str, str], prefix: str, used: set[str]) -> None:
    """Rename the ids that are used, once each, drop others, put variables for colours, round."""
    name = attributes.pop("id", None)
    if name in used:  # matplotlib writes some marks twice
        used.remove(name)
        attributes["id"] = f"{prefix}{name}"
    if link := attributes.pop(_LINK, ""):  # of an element, or the content of a picture
        attributes["href"] = f"#{prefix}{link[1:]}" if link.startswith("#") else link
    for key, value in attributes.items():
        if key in ("aria-label", "id", "href"):
            continue
        value = _REFERENCE.sub(rf"url(#{prefix}\1)", value)
        if key == "style":
            value = _COLOUR.sub(lambda match: _COLOURS.get(match[0], match[0]), value)
            value = re.sub(r"font-family: [^;]*;? ?", "", value)  # that of the page
        elif key in ("d", "x", "y", "transform", "width", "height"):
            value = _DECIMALS.sub(lambda match: f"{float(match[0]):.2f}", value)
            value = " ".join(value.split())
        attributes[key] = value
