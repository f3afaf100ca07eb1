"""Hints for words that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint naming the entry of ``names`` closest to ``name``, or nothing."""
    lower = {n.lower(): n for n in names}
    match = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
    return f"; did you mean {lower[match[0]]}?" if match else ""
