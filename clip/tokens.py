"""Tokenising of texts: token ids with start and end markers."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence

import torch

from .simple_tokenizer import EOT, SOT, SimpleTokenizer

#: tokens up to which those of a text that is too long are counted
MOST_COUNTED = 4096


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> torch.Tensor:
    """Convert texts to token ids: start marker, tokens, end marker, zeros.

    Args:
        texts: one text or several.
        context_length: number of ids per text.
        truncate: cut a text that is too long (its last id becomes the end marker).

    Returns:
        ``(n_texts, context_length)`` int64.

    Raises:
        RuntimeError: a text is too long and ``truncate`` is off.
        TypeError: something else than text is given.
        ValueError: the context has no room for the two markers.
    """
    if context_length < 2:
        raise ValueError(f"context_length is {context_length}; start and end marker alone take 2")
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokenizer = _tokenizer()
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is {text!r} of type {type(text).__name__}; str expected")
        encoded = tokenizer.encode(text, most=max(context_length, MOST_COUNTED))
        row = [tokenizer.encoder[SOT], *encoded, tokenizer.encoder[EOT]]
        if len(row) > context_length:
            if not truncate:
                more = "more than " if len(encoded) >= MOST_COUNTED else ""
                raise RuntimeError(
                    f"text {i} has {more}{len(row)} tokens with start and end marker, but the "
                    f"context holds {context_length}: {textwrap.shorten(text, 200)!r}. Shorten it "
                    "or pass truncate=True"
                )
            row = row[: context_length - 1] + row[-1:]
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def decode(ids: torch.Tensor) -> str:
    """Return the text of token ids ``(n,)`` without markers, in lower case."""
    return _tokenizer().decode(ids.tolist()).strip()
