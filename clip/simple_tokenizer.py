"""CLIP's byte-level byte-pair encoding.

The 49,408 tokens are those of the OpenAI release: 256 byte symbols, the same 256 at the end of a
word, 48,894 merges and two markers. The merges are read from the installed open_clip_torch.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

SOT = "<|startoftext|>"
EOT = "<|endoftext|>"
WORD_END = "</w>"
N_MERGES = 48894
#: bytes of the longest word that is split into tokens as a whole; a token has at most 32
LONGEST_WORD = 2500
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"

# Markers, English contractions, runs of letters, single digits, runs of anything else.
PATTERN = regex.compile(
    rf"{regex.escape(SOT)}|{regex.escape(EOT)}"
    r"|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def default_bpe() -> Path:
    """Find OpenAI's list of merges in the installed package open_clip_torch.

    The package is located, not imported: importing it takes seconds and is not needed.

    Raises:
        ModuleNotFoundError: open_clip_torch is not installed.
        FileNotFoundError: it is installed but has no such file.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"CLIP's vocabulary ({VOCABULARY_FILE}) comes with the package open_clip_torch, which "
            "is not installed: pip install open_clip_torch",
            name="open_clip",
        )
    path = Path(next(iter(spec.submodule_search_locations)), VOCABULARY_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the installed open_clip_torch does not hold CLIP's vocabulary; "
            "reinstall it (pip install --force-reinstall --no-deps open_clip_torch)"
        )
    return path


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """Give every byte a printable character: itself where Latin-1 has one, else 256 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    characters = printable + [256 + i for i in range(len(others))]
    pairs = zip(printable + others, characters, strict=True)
    return {byte: chr(character) for byte, character in pairs}


@functools.cache
def read_merges(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read the merges of CLIP's vocabulary, most frequent first.

    Raises:
        ValueError: the file holds too few lines or a line is not a pair.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : N_MERGES + 1]  # line 0 is a version note
    pairs = [tuple(line.split()) for line in lines]
    if len(pairs) != N_MERGES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} is not CLIP's vocabulary: {N_MERGES} lines of two words expected")
    return tuple((first, second) for first, second in pairs)


def clean(text: str) -> str:
    """Repair broken Unicode, undo HTML escapes (also double ones), squeeze blanks, lower-case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


class SimpleTokenizer:
    """Converter from text to token ids and back, with the attributes of OpenAI's class.

    Args:
        bpe_path: gzipped list of merges; OpenAI's by default.

    Attributes:
        encoder, decoder: token to id and id to token.
        byte_encoder, byte_decoder: byte to character and character to byte.
        bpe_ranks: pair of symbols to its rank; the lowest is merged first.

    Raises:
        ModuleNotFoundError, FileNotFoundError: see ``default_bpe``.
    """

    def __init__(self, bpe_path: str | Path | None = None):
        merges = read_merges(default_bpe() if bpe_path is None else bpe_path)
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        symbols = list(self.byte_encoder.values())
        tokens = symbols + [symbol + WORD_END for symbol in symbols]
        tokens += ["".join(pair) for pair in merges]
        tokens += [SOT, EOT]
        self.encoder = {token: i for i, token in enumerate(tokens)}
        self.decoder = dict(enumerate(tokens))
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {SOT: SOT, EOT: EOT}
        self.pat = PATTERN

    def bpe(self, token: str) -> str:
        """Split one word (in ``byte_encoder`` characters) into tokens, joined by blanks."""
        if token in self.cache:
            return self.cache[token]
        word = [*token[:-1], token[-1] + WORD_END]
        while len(word) > 1:
            best = min(pairwise(word), key=lambda pair: self.bpe_ranks.get(pair, N_MERGES))
            if best not in self.bpe_ranks:
                break
            merged = []
            i = 0
            while i < len(word):
                if tuple(word[i : i + 2]) == best:
                    merged.append("".join(best))
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            word = merged
        self.cache[token] = " ".join(word)
        return self.cache[token]

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Convert a text to token ids, without start and end markers.

        Args:
            text: any text. Words of more than ``LONGEST_WORD`` bytes, which fill the context of any
                CLIP, are cut into such pieces: the time of a word grows with its length's square.
            most: leave out words after this many tokens.
        """
        ids: list[int] = []
        for word in self.pat.finditer(clean(text)):
            characters = "".join(self.byte_encoder[byte] for byte in word[0].encode("utf-8"))
            for start in range(0, len(characters), LONGEST_WORD):
                piece = characters[start : start + LONGEST_WORD]
                ids += [self.encoder[token] for token in self.bpe(piece).split(" ")]
                if most is not None and len(ids) >= most:
                    return ids
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Convert token ids to text; a blank follows every word, cut characters become U+FFFD."""
        text = "".join(self.decoder[int(token)] for token in tokens)
        raw = bytearray(self.byte_decoder[character] for character in text)
        return raw.decode("utf-8", errors="replace").replace(WORD_END, " ")
