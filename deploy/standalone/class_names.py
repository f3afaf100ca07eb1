"""Other class names for this bundle: CLIP's byte pairs, and the exported text encoder.

Texts are read as by OpenAI's code, except that broken Unicode is not repaired.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata

import numpy as np

SOT, EOT, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
QUOTES = str.maketrans("ʼ‘’‚‛“”„‟", "'" * 5 + '"' * 4)
#: ligatures, and letters of full or half width
JOINED = re.compile("[ĲĳǄ-ǌǱ-ǳﬀ-ﬆ＀-￯]+")
#: texts that go through the frozen encoder together
AT_ONCE = 64


class Tokenizer:
    """Converter from text to token ids; ``path`` is the gzipped list of merges."""

    def __init__(self, path):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = [tuple(line.split()) for line in file.read().splitlines()]
        codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [code for code in range(256) if code not in codes]
        signs = [chr(code) for code in codes] + [chr(256 + i) for i in range(len(others))]
        self.signs = dict(zip(codes + others, signs))  # noqa: B905  of one length
        tokens = [*signs, *(sign + WORD_END for sign in signs), *map("".join, merges), SOT, EOT]
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    def encode(self, text):
        """Return token ids, with start and end markers."""
        ids = [number for word in split_words(clean(text)) for number in self.merge(word)]
        return [self.ids[SOT], *ids, self.ids[EOT]]

    def merge(self, word):
        """Return the ids of one word."""
        parts = [self.signs[byte] for byte in word.encode("utf-8")]
        parts[-1] += WORD_END
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))  # noqa: B905, RUF007  for Python 3.9
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == best
                merged.append("".join(best) if both else parts[i])
                i += 2 if both else 1
            parts = merged
        return [self.ids[part] for part in parts]


def clean(text):
    """Undo HTML escapes, straighten quotes, take ligatures apart, squeeze blanks, lower-case."""
    text = html.unescape(html.unescape(text)).translate(QUOTES)
    text = JOINED.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def split_words(text):
    """Split a text into contractions, runs of letters, single digits and runs of other signs."""

    def kind(sign):
        category = unicodedata.category(sign)[0]
        return " " if sign.isspace() else category if category in "LN" else "other"

    words, i = [], 0
    while i < len(text):
        found, end = CONTRACTION.match(text, i), i + 1
        if found:
            end = found.end()
        elif kind(text[i]) != "N":
            while end < len(text) and kind(text[end]) == kind(text[i]):
                end += 1
        words.append(text[i:end])
        i = end
    return [word for word in words if word != " "]


def class_features(bundle, names):
    """Compute the classifier (C, embed_dim) of class names.

    Raises:
        ValueError: no name, one that is there twice, or one that is too long.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError("no class name, or one that is there twice")
    how = bundle.notes["text_encoder"]
    tokenizer, length = Tokenizer(bundle.folder / how["merges"]), how["context_length"]

    def ids(template):
        rows = np.zeros((len(names), length), np.int64)
        for row, name in zip(rows, names):  # noqa: B905
            tokens = tokenizer.encode(template.format(name.replace("_", " ")))
            if len(tokens) + how["n_learned"] > length:
                raise ValueError(f"class name {name!r} is too long for the text encoder")
            row[: len(tokens)] = tokens
        return rows

    inputs = {"tokens": ids(how["template"])}
    if how["frozen"]:
        inputs["frozen"] = frozen_features(bundle.load(how["frozen"]), map(ids, how["templates"]))
    features = bundle.load(how["file"]).run(None, inputs)[0]
    if how["known"]:
        known = dict(zip(how["known"]["names"], np.load(bundle.folder / how["known"]["file"])))  # noqa: B905
        features = np.stack([known.get(*pair) for pair in zip(names, features)])  # noqa: B905
    return features


def frozen_features(session, texts):
    """Average the frozen CLIP's features over templates: (C, embed_dim), unit norm."""
    features = []
    for rows in texts:
        parts = [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]
        features.append(np.concatenate([session.run(None, {"tokens": p})[0] for p in parts]))
    mean = np.mean(features, axis=0)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
