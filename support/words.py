"""Wording of messages."""

from __future__ import annotations


def counted(number: int, noun: str, several: str = "") -> str:
    """Return a number with its noun, as ``1 run`` or ``2,000 runs``.

    Args:
        number: how many.
        noun: for one of them.
        several: for more or none of them; ``noun`` with an s if empty.
    """
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
