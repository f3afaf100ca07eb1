"""What one call of an encoder changes in its transformer blocks, as data.

A call takes a mapping from block number (0 is the input layer) to what changes there: one
:class:`Prompt`, a sequence of them, applied in order, or a whole :class:`BlockChange`. Encoders
read it as :class:`Changes`, which :meth:`Changes.of` makes of a mapping, once.

A prompt inserts its tokens at a position and drops some of the tokens that stand there: ``drop=0``
adds to the sequence, ``drop=n`` replaces what an earlier prompt of ``n`` tokens left, anything else
lets the sequence grow or shrink.
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
        tokens: what is inserted, ``d`` being the width of the encoder:
            ``(n, d)`` is shared by every sequence of the call;
            ``(S, n, d)`` holds one set per sequence, i.e. per image, or per class for text;
            ``(B, 1, n, d)`` and ``(B, C, n, d)``, text only, hold one set per sample of a batch,
            so that all ``C`` classes are encoded ``B`` times.
        at: index of the first inserted token. ``None`` is the end of the sequence. Text also takes
            one index per class, for positions that depend on the length of the class name.
        drop: how many existing tokens are removed: those from ``at`` on, or the last ones when
            ``at`` is ``None``.
        keep: share of the removed tokens in the inserted ones, which become
            ``(1 - keep) tokens + keep removed``; as many have to be removed as inserted.

    Raises:
        ValueError: tokens of another shape, or a ``drop`` or ``keep`` that cannot be.
    """

    tokens: Tensor
    at: int | tuple[int, ...] | None = None
    drop: int = 0
    keep: float = 0.0

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
        """By how many tokens the sequence becomes longer."""
        return self.length - self.drop

    def mixed(self, tokens: Tensor, removed: Tensor) -> Tensor:
        """Return what is inserted in place of ``removed``; both ``(..., n, d)``."""
        return torch.lerp(tokens, removed, self.keep) if self.keep else tokens


@dataclass(frozen=True)
class LowRank:
    """A low-rank term of a linear map: ``x W^T + b`` becomes ``x W^T + b + scale (x A^T) B^T``.

    Args:
        down: ``A``, ``(r, d_in)``.
        up: ``B``, ``(d_out, r)``.
        scale: factor of the term.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the term for ``x``, ``(..., d_in)``: ``(..., d_out)``."""
        return self.scale * F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


#: weight and bias of a layer norm, ``(d,)`` each
Norm = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BlockChange:
    """What changes in a transformer block, ``h = x + attn(ln_1 x)``, ``y = h + mlp(ln_2 h)``.

    Args:
        prompts: tokens that enter in front of the block.
        query, key, value: terms of the maps that ``ln_1 x`` goes through, of width ``d``.
        out: term of the map that the result of attention goes through.
        ln_1, ln_2: weight and bias in place of those of the block's layer norms.
        branch: from ``ln_1 x`` to what is added to the block's result, ``(..., d)`` both; applied
            to any selection of positions, which it gets in float32 at least.
    """

    prompts: tuple[Prompt, ...] = ()
    query: LowRank | None = None
    key: LowRank | None = None
    value: LowRank | None = None
    out: LowRank | None = None
    ln_1: Norm | None = None
    ln_2: Norm | None = None
    branch: Callable[[Tensor], Tensor] | None = None

    @property
    def inside(self) -> bool:
        """Whether anything else than its sequence changes for the block."""
        parts = (self.query, self.key, self.value, self.out, self.ln_1, self.ln_2, self.branch)
        return any(part is not None for part in parts)


#: the block as it is
UNCHANGED = BlockChange()


class Changes:
    """What one call of an encoder changes, by block.

    Args:
        blocks: block number -> change.
    """

    def __init__(self, blocks: Mapping[int, BlockChange]) -> None:
        self.blocks = {n: change for n, change in blocks.items() if change.prompts or change.inside}

    @classmethod
    def of(cls, changes: LayerChanges | None) -> Changes:
        """Return what a mapping says; what is read already stays itself."""
        if isinstance(changes, Changes):
            return changes
        return cls({number: _block_change(entry) for number, entry in (changes or {}).items()})

    def __bool__(self) -> bool:
        return bool(self.blocks)

    def __getitem__(self, number: int) -> BlockChange:
        return self.blocks.get(number, UNCHANGED)

    #: Python would otherwise ask for one block after the other, without an end
    __iter__ = None

    def check_depth(self, n_blocks: int) -> None:
        """Raises: ValueError: there are changes for blocks that an encoder does not have."""
        for number in self.blocks:
            if not 0 <= number < n_blocks:
                raise ValueError(
                    f"prompt for block {number}, but the encoder has {n_blocks} blocks "
                    f"(0 to {n_blocks - 1}): lower the prompt depth"
                )

    def prompts(self) -> Iterator[Prompt]:
        """All prompts, in the order in which they are applied."""
        for number in sorted(self.blocks):
            yield from self.blocks[number].prompts

    @property
    def inside(self) -> int:
        """How many blocks change in anything else than their sequence."""
        return sum(change.inside for change in self.blocks.values())

    @property
    def deepest(self) -> int:
        """Number of the last block that changes; -1 without any."""
        return max(self.blocks, default=-1)

    @property
    def batch_size(self) -> int | None:
        """For how many samples text prompts hold a set each; ``None`` if none of them does.

        Raises:
            ValueError: they hold them for batches of different size.
        """
        sizes = {len(prompt.tokens) for prompt in self.prompts() if prompt.tokens.dim() == 4}
        if len(sizes) > 1:
            raise ValueError(f"prompts for batches of different size: {sorted(sizes)}")
        return sizes.pop() if sizes else None

    def with_prompts(self, change: Callable[[Prompt], Prompt]) -> Changes:
        """Return the same with every prompt changed."""
        return Changes(
            {
                number: replace(block, prompts=tuple(map(change, block.prompts)))
                for number, block in self.blocks.items()
            }
        )

    def of_classes(self, start: int, stop: int) -> Changes:
        """Return the changes of a text encoder for the classes ``start`` to ``stop`` only."""

        def part(prompt: Prompt) -> Prompt:
            tokens, at = prompt.tokens, prompt.at
            if tokens.dim() > 2 and tokens.shape[-3] > 1:
                tokens = tokens[..., start:stop, :, :]
            at = at[start:stop] if isinstance(at, tuple) else at
            return replace(prompt, tokens=tokens, at=at)

        return self.with_prompts(part)

    def of_sample(self, sample: int) -> Changes:
        """Return the changes of a text encoder for one sample of a batch."""

        def part(prompt: Prompt) -> Prompt:
            of_one = prompt.tokens.dim() == 4
            return replace(prompt, tokens=prompt.tokens[sample]) if of_one else prompt

        return self.with_prompts(part)


#: what an encoder takes
LayerChanges = Changes | Mapping[int, Prompt | Sequence[Prompt] | BlockChange]


def _block_change(entry: Prompt | Sequence[Prompt] | BlockChange) -> BlockChange:
    if isinstance(entry, BlockChange):
        return entry
    return BlockChange((entry,) if isinstance(entry, Prompt) else tuple(entry))


def deep_prompts(layers: Sequence[Tensor], at: int | None = None) -> Changes:
    """Prompts for consecutive blocks: the first one is inserted, each later one replaces it.

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
    """Changes of several calls of an encoder as those of one call over the sequences of all.

    Args:
        changes: of every call, alike in all but the values of the prompts' tokens.
        sizes: sequences of every call: images, or for text samples of the whole class list.
        dims: dimensions of the joined tokens: 3 for images, 4 for text.

    Returns:
        one set of tokens per image, ``(sum(sizes), n, d)``, or per sample of the class list,
        ``(sum(sizes), 1, n, d)`` or ``(sum(sizes), C, n, d)``.

    Raises:
        ValueError: the calls differ in where prompts stand or in how long they are, or change the
            blocks themselves.
    """
    if any(change.inside for change in changes):
        raise ValueError("changes inside of blocks cannot share a call: only prompts can")
    outlines = [
        {
            number: [(p.length, p.at, p.drop, p.keep) for p in block.prompts]
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
        ValueError: fewer tokens than are to be dropped, sizes that do not fit, or a prompt in
            front of the first token, which both encoders read as what it is.
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
    tokens = tokens.to(x.dtype).expand(x.shape[0], -1, -1)
    # the gradients of a split are put together at once, those of slices one after the other
    before, removed, behind = x.split((at, prompt.drop, length - at - prompt.drop), dim=1)
    return torch.cat([before, prompt.mixed(tokens, removed), behind], dim=1)
