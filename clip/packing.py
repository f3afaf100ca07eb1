"""Class prompts laid out for a causal encoder without padding and without repeated prefixes.

A causal mask makes every position depend on the ones before it only. So (1) nothing after the
end-of-text token matters, (2) positions that are equal for all classes are computed once, and
(3) only the end-of-text position has to be finished in the last block. A :class:`PackedText` holds
the token ids of one class list in that form: a common prefix, then the rest of all classes one
after the other in a single row of tokens, here of the classes "cat" and "golden retriever"::

    place      0   1   2    3  4    5   6 7     8      9         10 11
             [SOS  a photo of  a | cat  . EOT | golden retriever .  EOT]
    owner                          0    0 0     1      1         1  1
    position                       0    1 2     0      1         2  3
    end                                   2                         6

    P = 5 tokens of the prefix, then total = 3 + 4 of the suffixes: 12 instead of 2 x 77

``owner``, ``position`` and ``end`` are those of :class:`SuffixLayout`, counted behind the prefix. A
token computes what it would in its own text: the positional embedding of place ``P + position``,
attention to the prefix and to its own suffix up to itself (:mod:`clip.packed_attention`). A prompt
in the prefix is inserted once and moves ``P``; any other is inserted into every suffix and makes
other ones of them: ``n = 2`` learned tokens v behind the names give::

             [SOS  a photo of  a | cat v v . EOT | golden retriever v v . EOT]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .changes import Changes, Prompt
from .packed_attention import AttentionGroups, CausalSequences, attends_in_sequences


class PackedText:
    """Token ids of a class list and the index tensors that packing needs.

    Build it once per class list and pass it to ``encode_text`` in place of the ids: the layouts are
    then computed once, and a step on an accelerator does not wait for the host.

    Args:
        ids: ``(C, context_length)`` token ids; the largest id of a row is its end-of-text token.

    Raises:
        ValueError: no class, or ids that are not a matrix.
    """

    def __init__(self, ids: Tensor) -> None:
        if ids.dim() != 2 or ids.shape[0] == 0:
            raise ValueError(
                f"token ids must be a matrix with one row per class, got shape {tuple(ids.shape)}"
            )
        lengths = ids.argmax(dim=-1) + 1
        self.ids = ids[:, : int(lengths.max())]  # (C, longest)
        self.lengths: tuple[int, ...] = tuple(lengths.tolist())
        same = (self.ids == self.ids[:1]).all(dim=0)
        # each class keeps at least its end-of-text token for itself
        self.n_common = min(int(same.long().cumprod(0).sum()), min(self.lengths) - 1)
        self._layouts: dict[tuple[int, ...], SuffixLayout] = {}
        self._splits: dict[int, list[PackedText]] = {}

    @classmethod
    def of(cls, text: Tensor | PackedText) -> PackedText:
        """``text`` itself if it is packed already, its ids packed otherwise."""
        return text if isinstance(text, PackedText) else cls(text)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def split(self, size: int) -> list[PackedText]:
        """The class list in parts of ``size`` classes, kept for the next call."""
        if size not in self._splits:
            self._splits[size] = [PackedText(ids) for ids in self.ids.split(size)]
        return self._splits[size]

    def layout(self, lengths: tuple[int, ...]) -> SuffixLayout:
        """Index tensors for suffixes of these lengths, kept for the next call."""
        if lengths not in self._layouts:
            self._layouts[lengths] = SuffixLayout(lengths, self.device)
        return self._layouts[lengths]


class SuffixLayout:
    """Where the tokens of ``C`` suffixes of different length stand in one packed row.

    Args:
        lengths: tokens per class, end-of-text included.
        device: where the index tensors live.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.lengths = lengths
        size = torch.tensor(lengths)
        self.n_classes, self.longest, self.total = len(lengths), max(lengths), sum(lengths)
        starts = size.cumsum(0) - size
        #: (total,) class of every token behind the prefix
        self.owner = torch.arange(len(lengths)).repeat_interleave(size).to(device)
        #: (total,) position of every token in its suffix
        self.position = (torch.arange(self.total) - starts.repeat_interleave(size)).to(device)
        #: (C,) place of every end-of-text token behind the prefix
        self.end = (starts + size - 1).to(device)
        self._starts = starts
        self._splices: dict[tuple, Tensor] = {}
        self._attentions: dict[int, AttentionGroups | CausalSequences] = {}

    def attention(self, n_prefix: int) -> AttentionGroups | CausalSequences:
        """How attention runs over these suffixes behind a common prefix, kept for the next call."""
        if n_prefix not in self._attentions:
            device = self.end.device
            padded = attends_in_sequences(device, self.lengths, n_prefix)
            kind = CausalSequences if padded else AttentionGroups
            self._attentions[n_prefix] = kind(self.lengths, n_prefix, device)
        return self._attentions[n_prefix]

    def splice_index(
        self, at: tuple[int, ...], n: int, drop: int, n_prefix: int, first_new: int
    ) -> Tensor:
        """Rows that make up the sequence after a splice, as indices into old rows then new ones.

        Args:
            at: position of the splice in every suffix.
            n: inserted tokens per class.
            drop: removed tokens per class.
            n_prefix: rows in front of the suffixes.
            first_new: index of the first inserted row; ``n`` of each class follow one another.
        """
        key = (at, n, drop, n_prefix, first_new)
        if key not in self._splices:
            pieces = [torch.arange(n_prefix)]
            begins = (self._starts + n_prefix).tolist()
            for c, (begin, position) in enumerate(zip(begins, at, strict=True)):
                new = first_new + c * n
                pieces += [
                    torch.arange(begin, begin + position),
                    torch.arange(new, new + n),
                    torch.arange(begin + position + drop, begin + self.lengths[c]),
                ]
            self._splices[key] = torch.cat(pieces).to(self.end.device)
        return self._splices[key]

    def rows_at(self, at: tuple[int, ...], n: int, n_prefix: int) -> Tensor:
        """Rows of ``n`` tokens of every suffix from its position ``at`` on, kept as well."""
        key = (at, n, n_prefix)
        if key not in self._splices:
            begins = self._starts + n_prefix + torch.tensor(at)
            rows = begins[:, None] + torch.arange(n)  # (C, n)
            self._splices[key] = rows.flatten().to(self.end.device)
        return self._splices[key]


class PrefixPlan:
    """How the prompts of one call fall on the common prefix and on the class suffixes.

    The prefix is the longest run of positions that stays equal for all classes through every
    block; blocks that draw random numbers leave none. Prompts inside it are applied once; the
    others are applied to the packed suffixes.

    Args:
        text: the class list.
        changes: of the text encoder.

    Raises:
        ValueError: a prompt that has no place in the sequence, or is not made for text.
    """

    def __init__(self, text: PackedText, changes: Changes) -> None:
        prompts = list(changes.prompts())
        for prompt in prompts:
            check_text_prompt(prompt, len(text))
        # what is drawn for each position of each class is not equal in the prefix
        most = 0 if changes.random else text.n_common
        self.n_common = next(n for n in range(most, -1, -1) if n == 0 or self._fits(n, prompts))
        #: tokens per class behind the common prefix, in front of the first block
        self.suffix_lengths = tuple(length - self.n_common for length in text.lengths)

    def in_prefix(self, prompt: Prompt, n_prefix: int) -> bool:
        """Whether ``prompt`` lies wholly in a common prefix of ``n_prefix`` tokens."""
        return self.n_common > 0 and _inside(prompt, n_prefix)

    @staticmethod
    def _fits(n_prefix: int, prompts: Sequence[Prompt]) -> bool:
        for prompt in prompts:
            if _inside(prompt, n_prefix):
                n_prefix += prompt.growth
            elif _first(prompt) < n_prefix:
                return False
        return True


def places(prompt: Prompt, n_classes: int) -> tuple[int, ...]:
    """Return the index of a text prompt's first token in every class.

    Raises:
        ValueError: the prompt stands at the end, wherever that is.
    """
    if prompt.at is None:
        raise ValueError("a text prompt needs a position `at`: the end depends on the class")
    return prompt.at if isinstance(prompt.at, tuple) else (prompt.at,) * n_classes


def check_text_prompt(prompt: Prompt, n_classes: int) -> None:
    """Raises: ValueError: the prompt is not made for text, or for another number of classes."""
    at = places(prompt, n_classes)
    if len(at) != n_classes:
        raise ValueError(f"{len(at)} prompt positions for {n_classes} classes")
    sets = prompt.tokens.shape[-3] if prompt.tokens.dim() > 2 else 1
    if sets not in (1, n_classes):
        raise ValueError(f"{sets} sets of prompt tokens for {n_classes} classes")


def check_context(longest: int, context_length: int) -> None:
    """Raises: ValueError: texts of so many tokens, prompts included, are too long."""
    if longest > context_length:
        raise ValueError(
            f"the longest prompt has {longest} tokens, the context holds {context_length}: "
            "use fewer context tokens or shorter class names"
        )


def check_places(prompt: Prompt, at: Sequence[int], lengths: Sequence[int], n_prefix: int) -> None:
    """Raises: ValueError: the prompt has no place in front of the end-of-text tokens.

    Args:
        prompt: of any kind.
        at: its place in every sequence, counted behind the first ``n_prefix`` tokens.
        lengths: tokens of every sequence behind these, end-of-text included.
        n_prefix: tokens in front.
    """
    for position, length in zip(at, lengths, strict=True):
        if not 0 <= position < length - prompt.drop:
            raise ValueError(
                f"cannot insert a prompt at position {position + n_prefix} and drop {prompt.drop} "
                f"tokens: the end-of-text token stands at {n_prefix + length - 1}"
            )


def _first(prompt: Prompt) -> int:
    return min(places(prompt, 1))


def _inside(prompt: Prompt, n_prefix: int) -> bool:
    per_class = prompt.tokens.dim() > 2 and prompt.tokens.shape[-3] > 1
    return isinstance(prompt.at, int) and not per_class and 0 < prompt.at <= n_prefix - prompt.drop


def splice_packed(
    x: Tensor, prompt: Prompt, n_prefix: int, layout: SuffixLayout
) -> tuple[Tensor, tuple[int, ...]]:
    """Insert and drop the tokens of one prompt in every class suffix.

    Args:
        x: ``(B, n_prefix + layout.total, d)``, common prefix first.
        prompt: with ``at`` counted from the start of the whole sequence.
        n_prefix: tokens of the common prefix.
        layout: the suffixes as they are now.

    Returns:
        the new ``x`` and the new suffix lengths.

    Raises:
        ValueError: the prompt would drop a token that is not there, or the end-of-text token.
    """
    n_classes, n, drop = layout.n_classes, prompt.length, prompt.drop
    at = tuple(position - n_prefix for position in places(prompt, n_classes))
    check_places(prompt, at, layout.lengths, n_prefix)
    tokens = prompt.tokens.to(x.dtype)
    # shared tokens are expanded, not indexed: see behind_prefix
    tokens = tokens.expand(x.shape[0], n_classes, -1, -1).flatten(1, 2)  # (B, C * n, d)
    if prompt.keep:
        tokens = prompt.mixed(tokens, x.index_select(1, layout.rows_at(at, drop, n_prefix)))
    source = torch.cat([x, tokens], dim=1)  # (B, P + total + C * n, d)
    index = layout.splice_index(at, n, drop, n_prefix, x.shape[1])
    # (B, P + total + C * (n - drop), d)
    return source.index_select(1, index), tuple(length + n - drop for length in layout.lengths)
