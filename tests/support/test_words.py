"""Wording of messages: numbers with their nouns."""

from __future__ import annotations

import pytest

from support.words import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("run",), "0 runs"),
        (1, ("run",), "1 run"),
        (2000, ("run",), "2,000 runs"),
        (1, ("class", "classes"), "1 class"),
        (2, ("class", "classes"), "2 classes"),
    ],
)
def test_one_is_singular(number, words, text):
    assert counted(number, *words) == text
