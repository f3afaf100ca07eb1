from __future__ import annotations

import gzip
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clip
from clip import simple_tokenizer
from clip.simple_tokenizer import SimpleTokenizer

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "tests/fixtures/parity"
SOT, EOT = 49406, 49407

words = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=12), max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return SimpleTokenizer()


@pytest.fixture(scope="module")
def recorded():
    with np.load(PARITY / "tokenizer.npz") as file:
        return dict(file)


def test_recorded_ids(recorded):
    ids = clip.tokenize(recorded["texts"].tolist())
    assert ids.dtype == torch.int64
    assert np.array_equal(ids.numpy(), recorded["tokens"])


def test_recorded_truncation(recorded):
    text = str(recorded["long_text"])
    assert np.array_equal(clip.tokenize(text, truncate=True).numpy(), recorded["tokens_truncated"])
    with pytest.raises(RuntimeError, match=r"text 1 has 102 tokens .* holds 77: 'word wo"):
        clip.tokenize(["a cat", text])


def test_upstream_interface(tokenizer):
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert tokenizer.encoder["<|startoftext|>"] == SOT
    assert tokenizer.encoder["<|endoftext|>"] == EOT
    assert tokenizer.decoder[tokenizer.encoder["cat</w>"]] == "cat</w>"
    assert tokenizer.bpe_ranks["i", "n"] == 0 and len(tokenizer.bpe_ranks) == 48894
    assert sorted(tokenizer.byte_encoder) == list(range(256))
    assert tokenizer.byte_encoder[ord("a")] == "a"
    assert tokenizer.bpe("photo") == "photo</w>"
    assert tokenizer.bpe("axolotl").replace(" ", "") == "axolotl</w>"


def test_markers_in_the_text_are_markers(tokenizer):
    assert tokenizer.encode("<|startoftext|>cat <|ENDOFTEXT|>") == [
        SOT,
        tokenizer.encoder["cat</w>"],
        EOT,
    ]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A\tcat\n\n sat ", "a cat sat"),
        ("&amp;lt;b&amp;gt;", "<b>"),  # escaped twice
        ("cafÃ©", "café"),  # UTF-8 once read as Latin-1
        ("Straße ﬁn", "straße fin"),
    ],
)
def test_cleaning(text, cleaned):
    assert simple_tokenizer.clean(text) == cleaned


@given(words)
def test_decoding_gives_words_back(tokenizer, words):
    assert tokenizer.decode(tokenizer.encode(" ".join(words))) == "".join(w + " " for w in words)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_nothing_but_blanks_is_lost(tokenizer, text):
    ids = tokenizer.encode(text)
    cleaned = simple_tokenizer.clean(text)
    if "</w>" not in cleaned:
        kept = tokenizer.decode(ids).split()
        assert "".join(kept) == "".join(cleaned.split())


@given(st.text(string.ascii_letters + " '-", max_size=40))
def test_case_does_not_matter(tokenizer, text):
    assert tokenizer.encode(text) == tokenizer.encode(text.upper())


def test_cut_character_decodes_to_replacement(tokenizer):
    ids = tokenizer.encode("你")
    assert tokenizer.decode(ids) == "你 "
    assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(ids[:1])


@given(st.text(max_size=60), st.integers(2, 90))
def test_layout_of_a_row(tokenizer, text, context_length):
    n_ids = len(tokenizer.encode(text))
    (row,) = clip.tokenize(text, context_length, truncate=True)
    end = min(n_ids + 1, context_length - 1)
    assert row.shape == (context_length,)
    assert row[0] == SOT
    assert row.argmax() == end and row[end] == EOT
    assert row[1:end].tolist() == tokenizer.encode(text)[: end - 1]
    assert not row[end + 1 :].any()


@settings(max_examples=30)
@given(words, st.integers(2, 40))
def test_too_long_is_an_error_exactly_when_it_is_too_long(tokenizer, words, context_length):
    text = " ".join(words)
    length = len(tokenizer.encode(text)) + 2
    if length <= context_length:
        assert clip.tokenize(text, context_length).shape == (1, context_length)
    else:
        with pytest.raises(RuntimeError, match=rf"has {length} tokens .* holds {context_length}"):
            clip.tokenize(text, context_length)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="text 1 is 7 of type int"):
        clip.tokenize(["cat", 7])
    with pytest.raises(ValueError, match="context_length is 1"):
        clip.tokenize("cat", context_length=1)
    assert clip.tokenize([]).shape == (0, 77)


def test_one_tokenizer_per_process(monkeypatch):
    first = clip.tokenize("a cat")
    monkeypatch.setattr(simple_tokenizer, "read_merges", None)  # another build would fail
    assert torch.equal(clip.tokenize("a cat"), first)


def test_vocabulary_package_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match="pip install open_clip_torch"):
        SimpleTokenizer()


def test_vocabulary_file_absent(monkeypatch, tmp_path):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(FileNotFoundError, match=r"open_clip.bpe_simple_vocab_16e6.txt.gz"):
        SimpleTokenizer()


def test_wrong_vocabulary_file(tmp_path):
    path = tmp_path / "merges.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("#version\ni n\nt h\n")
    with pytest.raises(ValueError, match="is not CLIP's vocabulary"):
        SimpleTokenizer(path)


def test_module_needs_neither_torch_nor_open_clip():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("t", {str(ROOT / "clip/simple_tokenizer.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.SimpleTokenizer().encode("cat"), {{"torch", "open_clip"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2368] set()"
