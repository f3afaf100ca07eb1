"""Pages that open alone: one file with style, script and pictures, in light or dark."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..labels import class_title
from .svg import DARK, shown

FOLDER = Path(__file__).parent
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")


def now() -> str:
    """Return the time that a page says it was made at."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def minus(text: str) -> str:
    """Return the text of numbers with minus signs for the hyphens in front of them."""
    return _NEGATIVE.sub("\N{MINUS SIGN}", text)


def render(name: str, **values: object) -> str:
    """Return a page.

    Args:
        name: of a template that extends ``base.html.j2``.
        values: what it shows, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.filters["minus"] = minus
    environment.filters["class_title"] = class_title
    script = (FOLDER / "report.js").read_text("utf-8")
    palette = {f"c{colour[1:].lower()}": (colour, dark) for colour, dark in DARK.items()}
    return environment.get_template(name).render(
        palette=palette,
        style=Markup((FOLDER / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
