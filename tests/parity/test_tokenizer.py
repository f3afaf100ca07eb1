"""Token ids equal the recorded ones exactly."""

from __future__ import annotations

import torch

from clip.tokens import tokenize
from tests.parity_files import Recorded


def test_ids():
    recorded = Recorded("tokenizer")
    texts = [str(text) for text in recorded.arrays["texts"]]
    assert torch.equal(tokenize(texts), recorded["tokens"].long())


def test_truncated_ids():
    recorded = Recorded("tokenizer")
    text = str(recorded.arrays["long_text"])
    assert torch.equal(tokenize(text, truncate=True), recorded["tokens_truncated"].long())
