"""Hints for words that are not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence


def closest(
    name: str,
    names: Iterable[str],
    most: int = 1,
    cutoff: float = 0.4,
    fold: Callable[[str], str] = str.lower,
) -> list[str]:
    """Return the entries of ``names`` that are spelt most like ``name``, the closest first.

    Args:
        name: word that is not known.
        names: words that are.
        most: longest list to return.
        cutoff: least likeness, from 0 (anything) to 1 (equal), as in ``difflib``.
        fold: what is compared of a word.
    """
    by_folded = {fold(known): known for known in names}
    near = difflib.get_close_matches(fold(name), by_folded, n=most, cutoff=cutoff)
    return [by_folded[folded] for folded in near]


def did_you_mean(near: Sequence[str], show: Callable[[str], str] = str) -> str:
    """Return the end of a sentence that offers some words, or nothing if there are none.

    Args:
        near: words to offer.
        show: ``repr`` puts them in quotation marks.
    """
    return f"; did you mean {' or '.join(map(show, near))}?" if near else ""


def nearest(
    name: str,
    names: Iterable[str],
    cutoff: float = 0.4,
    fold: Callable[[str], str] = str.lower,
    show: Callable[[str], str] = str,
) -> str:
    """Return the end of a sentence that offers the closest of ``names``, or nothing.

    Args:
        name, names, cutoff, fold: as for :func:`closest`.
        show: as for :func:`did_you_mean`.
    """
    return did_you_mean(closest(name, names, 1, cutoff, fold), show)


def same_but_case(name: str, names: Iterable[str]) -> str:
    """Return the one of ``names`` that is spelt as ``name`` but for case; else ``name``."""
    names = list(names)
    found = [known for known in names if known.lower() == name.lower()]
    return found[0] if name not in names and len(found) == 1 else name


def refuse_key(word: str, place: str, usage: str) -> None:
    """Check that a word of a command line is no config key in the place of something else.

    Args:
        word: such as ``digits``, or mistakenly ``OPTIM.MAX_EPOCH``.
        place: what belongs there.
        usage: how it is done, for the message.

    Raises:
        ValueError: it is a key.
    """
    if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+(=.*)?", word):
        raise ValueError(f"{word} is a config key, in the place of {place}: {usage}")
