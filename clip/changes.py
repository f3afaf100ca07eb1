"""Changes of an encoder's transformer blocks, as data: prompts, low-rank terms, layer norms.

A call of an encoder takes a mapping from block number (0 is the input layer) to what changes there:
one :class:`Prompt`, a sequence of them, applied in order, or a whole :class:`BlockChange`.
:meth:`Changes.of` turns such a mapping into the :class:`Changes` that encoders work with.

A prompt inserts its tokens at a position and drops some of the tokens that stand there: ``drop=0``
adds to the sequence, ``drop=n`` replaces an earlier prompt of ``n`` tokens, anything else lets the
sequence grow or shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Tokens that enter a sequence in front of one transformer block.

    Args:
        tokens: inserted tokens, ``d`` being the width of the encoder:
            ``(n, d)`` is shared by all sequences of the call;
            ``(S, n, d)`` holds one set per sequence: per image, or per class for text;
            ``(B, 1, n, d)`` and ``(B, C, n, d)``, text only, hold one set per sample of a batch,
            so that all ``C`` classes are encoded ``B`` times.
        at: index of the first inserted token; ``None`` is the end of the sequence. Text also takes
            one index per class, for positions that depend on the length of the class name.
        drop: number of existing tokens to remove: those from ``at`` on, or the last ones when
            ``at`` is ``None``.
        keep: share of the removed tokens in the inserted ones, which become
            ``(1 - keep) tokens + keep removed``. As many must be removed as inserted.
        embedded: for block 0 only: the tokens enter behind what the input layer does to all others,
            positional embedding and, for images, ``ln_pre``. Prompts of later blocks always do.

    Raises:
        ValueError: ``tokens`` have the wrong number of dimensions, ``drop`` is negative, or
            ``keep`` is given while ``drop`` differs from the number of inserted tokens.
    """

    tokens: Tensor
    at: int | tuple[int, ...] | None = None
    drop: int = 0
    keep: float = 0.0
    embedded: bool = False

    def __post_init__(self) -> None:
        if self.tokens.dim() not in (2, 3, 4):
            raise ValueError(
                f"prompt tokens have 2, 3 or 4 dimensions, not shape {tuple(self.tokens.shape)}"
            )
        if self.drop < 0:
            raise ValueError(f"a prompt cannot drop {self.drop} tokens: use 0 or more")
        if not 0 <= self.keep <= 1:
            raise ValueError(f"a prompt cannot keep a share of {self.keep}: use 0 to 1")
        if self.keep and self.drop != self.length:
            raise ValueError(
                f"a prompt of {self.length} tokens that drops {self.drop} cannot keep a share of "
                "them: drop as many as are inserted"
            )

    @property
    def length(self) -> int:
        """Number of inserted tokens."""
        return self.tokens.shape[-2]

    @property
    def growth(self) -> int:
        """Number of tokens by which the sequence becomes longer; may be negative."""
        return self.length - self.drop

    def mixed(self, tokens: Tensor, removed: Tensor) -> Tensor:
        """Mix ``removed`` tokens into the inserted ones by ``keep``; all ``(..., n, d)``."""
        return torch.lerp(tokens, removed, self.keep) if self.keep else tokens


@dataclass(frozen=True)
class LowRank:
    """A low-rank term of a linear map: ``x W^T + b`` becomes ``x W^T + b + scale (x A^T) B^T``.

    Args:
        down: ``A``, ``(r, d_in)``.
        up: ``B``, ``(d_out, r)``.
        scale: factor of the term.
        drop: random map that ``x`` goes through on its way into the term only, as dropout in
            training; of the same shape.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    drop: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the term for ``x``, ``(..., d_in)``: ``(..., d_out)``."""
        if self.drop is not None:
            x = self.drop(x)
        return self.scale * F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


#: weight and bias of a layer norm, ``(d,)`` each
Norm = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BlockChange:
    """Changes of one transformer block ``h = x + attn(ln_1 x)``, ``y = h + mlp(ln_2 h)``.

    Args:
        prompts: tokens that enter in front of the block.
        entry: block 0 only: maps what enters, ``(..., d)`` in float32 at least, position by
            position, to what is added there: texts after the prompts and before the positional
            embeddings, images after ``ln_pre``.
        query, key, value: low-rank terms of attention's input projections, ``d`` to ``d``.
        out: low-rank term of attention's output projection, ``d`` to ``d``.
        ln_1, ln_2: weight and bias that replace those of the block's layer norms.
        branch: parallel branch: maps ``ln_1 x``, ``(..., d)`` in float32 at least, to what is added
            to ``y``. The last block may call it on some positions only.
    """

    prompts: tuple[Prompt, ...] = ()
    entry: Callable[[Tensor], Tensor] | None = None
    query: LowRank | None = None
    key: LowRank | None = None
    value: LowRank | None = None
    out: LowRank | None = None
    ln_1: Norm | None = None
    ln_2: Norm | None = None
    branch: Callable[[Tensor], Tensor] | None = None

    @property
    def inside(self) -> bool:
        """Whether the block itself changes, not only the sequence that it reads."""
        parts = (
            self.entry,
            self.query,
            self.key,
            self.value,
            self.out,
            self.ln_1,
            self.ln_2,
            self.branch,
        )
        return any(part is not None for part in parts)

    @property
    def random(self) -> bool:
        """Whether a term draws random numbers, so that equal positions do not stay equal."""
        terms = (self.query, self.key, self.value, self.out)
        return any(term is not None and term.drop is not None for term in terms)

    def entered(self, x: Tensor) -> Tensor:
        """Return what enters block 0, ``x``, with what ``entry`` adds."""
        if self.entry is None:
            return x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return x + self.entry(wide).to(x.dtype)


#: leaves a block as it is
UNCHANGED = BlockChange()


class Changes:
    """Changes of an encoder in one call, by block.

    Args:
        blocks: block number -> change.
    """

    def __init__(self, blocks: Mapping[int, BlockChange]) -> None:
        self.blocks = {n: change for n, change in blocks.items() if change.prompts or change.inside}

    @classmethod
    def of(cls, changes: LayerChanges | None) -> Changes:
        """Make ``Changes`` of a mapping; return ``Changes`` as they are."""
        if isinstance(changes, Changes):
            return changes
        return cls({number: _block_change(entry) for number, entry in (changes or {}).items()})

    def __bool__(self) -> bool:
        return bool(self.blocks)

    def __getitem__(self, number: int) -> BlockChange:
        return self.blocks.get(number, UNCHANGED)

    #: otherwise Python would iterate by ``__getitem__``, which never ends
    __iter__ = None

    def check_depth(self, n_blocks: int) -> None:
        """Check that every changed block exists in an encoder of ``n_blocks`` blocks.

        Raises:
            ValueError: one does not.
        """
        for number in self.blocks:
            if not 0 <= number < n_blocks:
                raise ValueError(
                    f"prompt for block {number}, but the encoder has {n_blocks} blocks "
                    f"(0 to {n_blocks - 1}): lower the prompt depth"
                )
            if number and self.blocks[number].entry is not None:
                raise ValueError(f"entry is for block 0 only, not for block {number}")

    @property
    def at_input(self) -> tuple[Prompt, ...]:
        """Prompts that enter in front of the input layer's positional embedding."""
        return tuple(prompt for prompt in self[0].prompts if not prompt.embedded)

    def in_front_of(self, number: int) -> tuple[Prompt, ...]:
        """Return the prompts that enter in front of a block, behind the input layer."""
        prompts = self[number].prompts
        return prompts if number else tuple(prompt for prompt in prompts if prompt.embedded)

    def prompts(self) -> Iterator[Prompt]:
        """Yield all prompts in the order in which they are applied."""
        yield from self.at_input
        for number in sorted(self.blocks):
            yield from self.in_front_of(number)

    @property
    def inside(self) -> int:
        """Number of blocks that change themselves, not only the sequence that they read."""
        return sum(change.inside for change in self.blocks.values())

    @property
    def random(self) -> bool:
        """Whether a block draws random numbers."""
        return any(change.random for change in self.blocks.values())

    @property
    def deepest(self) -> int:
        """Number of the last block that changes; -1 without any."""
        return max(self.blocks, default=-1)

    @property
    def batch_size(self) -> int | None:
        """Number of samples ``B`` of per-sample text prompts; ``None`` without such prompts.

        Raises:
            ValueError: prompts are of batches of different size.
        """
        sizes = {len(prompt.tokens) for prompt in self.prompts() if prompt.tokens.dim() == 4}
        if len(sizes) > 1:
            raise ValueError(f"prompts for batches of different size: {sorted(sizes)}")
        return sizes.pop() if sizes else None

    def with_prompts(self, change: Callable[[Prompt], Prompt]) -> Changes:
        """Return a copy whose prompts have gone through ``change``."""
        return Changes(
            {
                number: replace(block, prompts=tuple(map(change, block.prompts)))
                for number, block in self.blocks.items()
            }
        )

    def of_classes(self, start: int, stop: int) -> Changes:
        """Select the changes of a text encoder for the classes from ``start`` up to ``stop``."""

        def part(prompt: Prompt) -> Prompt:
            tokens, at = prompt.tokens, prompt.at
            if tokens.dim() > 2 and tokens.shape[-3] > 1:
                tokens = tokens[..., start:stop, :, :]
            at = at[start:stop] if isinstance(at, tuple) else at
            return replace(prompt, tokens=tokens, at=at)

        return self.with_prompts(part)

    def of_sample(self, sample: int) -> Changes:
        """Select the changes of a text encoder for one sample of a batch."""

        def part(prompt: Prompt) -> Prompt:
            of_one = prompt.tokens.dim() == 4
            return replace(prompt, tokens=prompt.tokens[sample]) if of_one else prompt

        return self.with_prompts(part)


#: changes as an encoder takes them: read already, or a mapping by block number
LayerChanges = Changes | Mapping[int, Prompt | Sequence[Prompt] | BlockChange]


def _block_change(entry: Prompt | Sequence[Prompt] | BlockChange) -> BlockChange:
    if isinstance(entry, BlockChange):
        return entry
    return BlockChange((entry,) if isinstance(entry, Prompt) else tuple(entry))


def deep_prompts(layers: Sequence[Tensor], at: int | None = None) -> Changes:
    """Make prompts of consecutive blocks: the first is inserted, each later one replaces it.

    Args:
        layers: one ``(n, d)`` tensor per prompted block, block 0 first.
        at: index of the first prompt token, ``None`` for the end of the sequence.
    """
    drops = [0, *(tokens.shape[-2] for tokens in layers[:-1])]
    return Changes.of(
        {
            number: Prompt(tokens, at=at, drop=drop)
            for number, (tokens, drop) in enumerate(zip(layers, drops, strict=True))
        }
    )


def join_changes(changes: Sequence[Changes], sizes: Sequence[int], dims: int) -> Changes:
    """Join the changes of several calls of an encoder into those of one call.

    Args:
        changes: of every call; they may differ only in the values of the prompts' tokens.
        sizes: batch size of every call: images, or for text samples of the whole class list.
        dims: dimensions of the joined tokens: 3 for images, 4 for text.

    Returns:
        prompts with one set of tokens per image, ``(sum(sizes), n, d)``, or per sample of the
        class list, ``(sum(sizes), 1, n, d)`` or ``(sum(sizes), C, n, d)``.

    Raises:
        ValueError: prompts of the calls differ in place or length, or a call changes the blocks
            themselves.
    """
    if any(change.inside for change in changes):
        raise ValueError("changes inside of blocks cannot share a call: only prompts can")
    outlines = [
        {
            number: [
                (prompt.length, prompt.at, prompt.drop, prompt.keep, prompt.embedded)
                for prompt in block.prompts
            ]
            for number, block in change.blocks.items()
        }
        for change in changes
    ]
    if any(outline != outlines[0] for outline in outlines):
        raise ValueError("prompts that differ in place or length cannot share a call")

    def joined(number: int, index: int) -> Prompt:
        parts = []
        for change, size in zip(changes, sizes, strict=True):
            tokens = change[number].prompts[index].tokens
            tokens = tokens.reshape((1,) * (dims - tokens.dim()) + tokens.shape)
            parts.append(tokens.expand(size, *tokens.shape[1:]))
        return replace(changes[0][number].prompts[index], tokens=torch.cat(parts))

    return Changes.of(
        {
            number: [joined(number, index) for index in range(len(block.prompts))]
            for number, block in changes[0].blocks.items()
        }
    )


def splice(x: Tensor, prompt: Prompt) -> Tensor:
    """Insert and drop the tokens of one prompt at the same place in every sequence of ``x``.

    Args:
        x: ``(S, length, d)``.
        prompt: tokens ``(n, d)`` or ``(S, n, d)``, ``at`` an index or ``None``.

    Returns:
        ``(S, length + n - drop, d)``.

    Raises:
        ValueError: there are fewer tokens than are to be dropped, sizes do not fit, or the prompt
            would stand in front of the first token (class token or start of text).
    """
    tokens = prompt.tokens
    if tokens.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"prompt of width {tokens.shape[-1]} for an encoder of width {x.shape[-1]}"
        )
    if tokens.dim() == 4 or (tokens.dim() == 3 and tokens.shape[0] not in (1, x.shape[0])):
        raise ValueError(f"prompt tokens of shape {tuple(tokens.shape)} for {x.shape[0]} sequences")
    if isinstance(prompt.at, tuple):
        raise ValueError("a prompt with a place of its own per class is for text only")
    length = x.shape[1]
    at = length - prompt.drop if prompt.at is None else prompt.at
    if at < 1 or at + prompt.drop > length:
        raise ValueError(
            f"cannot drop {prompt.drop} tokens at position {at} of a sequence of {length} tokens"
        )
    tokens = tokens.to(x.dtype).expand(x.shape[0], -1, -1)  # (S, n, d)
    # split and not slices: its backward pass writes one gradient instead of adding up three
    before, removed, behind = x.split((at, prompt.drop, length - at - prompt.drop), dim=1)
    return torch.cat([before, prompt.mixed(tokens, removed), behind], dim=1)
