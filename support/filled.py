"""Tables of documents, filled from results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from support.files import write_text


def fill(text: str, parts: Mapping[str, str]) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->`` in a document.

    Raises:
        ValueError: the document has no such place.
    """
    for name, part in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"

        def put(match: re.Match[str], part: str = part) -> str:
            return match[1] + part + match[2]

        text, n = re.subn(pattern, put, text, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"the document needs one place for {name}, has {n}")
    return text


def fill_document(path: Path, parts: Mapping[str, str]) -> None:
    """Fill the places of a document's file, as :func:`fill` does those of a text."""
    write_text(fill(path.read_text("utf-8"), parts), path)
