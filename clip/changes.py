"""Prompts as data: what is inserted where, in front of which transformer block.

An encoder call takes ``LayerPrompts``, a mapping from block number (0 is the input layer) to one
:class:`Prompt` or a sequence of them, applied in order. A prompt inserts its tokens at a position
and drops some of the tokens that stand there: ``drop=0`` adds to the sequence, ``drop=n`` replaces
what an earlier prompt of ``n`` tokens left, anything else lets the sequence grow or shrink.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
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
    """

    tokens: Tensor
    at: int | tuple[int, ...] | None = None
    drop: int = 0

    def __post_init__(self) -> None:
        if self.tokens.dim() not in (2, 3, 4):
            raise ValueError(
                f"prompt tokens have 2, 3 or 4 dimensions, not shape {tuple(self.tokens.shape)}"
            )
        if self.drop < 0:
            raise ValueError(f"a prompt cannot drop {self.drop} tokens: use 0 or more")

    @property
    def length(self) -> int:
        """Number of inserted tokens."""
        return self.tokens.shape[-2]


LayerPrompts = Mapping[int, "Prompt | Sequence[Prompt]"]


def deep_prompts(layers: Sequence[Tensor], at: int | None = None) -> dict[int, Prompt]:
    """Prompts for consecutive blocks: the first one is inserted, each later one replaces it.

    Args:
        layers: one ``(n, d)`` tensor per prompted block, block 0 first.
        at: index of the first prompt token, ``None`` for the end of the sequence.
    """
    return {
        layer: Prompt(tokens, at=at, drop=0 if layer == 0 else layers[layer - 1].shape[-2])
        for layer, tokens in enumerate(layers)
    }


def by_layer(prompts: LayerPrompts | None, n_layers: int) -> list[tuple[Prompt, ...]]:
    """Spread ``prompts`` over ``n_layers`` blocks; an empty tuple where there is none.

    Raises:
        ValueError: a prompt stands in front of a block that does not exist.
    """
    spread: list[tuple[Prompt, ...]] = [()] * n_layers
    for layer, entry in (prompts or {}).items():
        if not 0 <= layer < n_layers:
            raise ValueError(
                f"prompt for block {layer}, but the encoder has {n_layers} blocks "
                f"(0 to {n_layers - 1}): lower the prompt depth"
            )
        spread[layer] = _each(entry)
    return spread


def _each(entry: Prompt | Sequence[Prompt]) -> tuple[Prompt, ...]:
    return (entry,) if isinstance(entry, Prompt) else tuple(entry)


def n_samples(prompts: LayerPrompts | None) -> int:
    """How many times text prompts have the whole class list encoded."""
    entries = [prompt for entry in (prompts or {}).values() for prompt in _each(entry)]
    return max((p.tokens.shape[0] for p in entries if p.tokens.dim() == 4), default=1)


def batch_size(layers: Sequence[Sequence[Prompt]]) -> int | None:
    """For how many samples text prompts hold a set each; ``None`` if none of them does.

    Args:
        layers: prompts of every block, as ``by_layer`` gives them.

    Raises:
        ValueError: they hold them for batches of different size.
    """
    sizes = {len(p.tokens) for entry in layers for p in entry if p.tokens.dim() == 4}
    if len(sizes) > 1:
        raise ValueError(f"prompts for batches of different size: {sorted(sizes)}")
    return sizes.pop() if sizes else None


def join_prompts(
    prompts: Sequence[LayerPrompts | None], sizes: Sequence[int], dims: int
) -> LayerPrompts | None:
    """Prompts of several calls of an encoder as those of one call over the sequences of all.

    Args:
        prompts: of every call, alike in all but the values of the tokens; or ``None`` for each.
        sizes: sequences of every call: images, or for text samples of the whole class list.
        dims: dimensions of the joined tokens: 3 for images, 4 for text.

    Returns:
        one set of tokens per image, ``(sum(sizes), n, d)``, or per sample of the class list,
        ``(sum(sizes), 1, n, d)`` or ``(sum(sizes), C, n, d)``.

    Raises:
        ValueError: the calls differ in where prompts stand or in how long they are.
    """
    spread = [{layer: _each(entry) for layer, entry in (one or {}).items()} for one in prompts]
    outlines = [
        {layer: [(p.length, p.at, p.drop) for p in entry] for layer, entry in one.items()}
        for one in spread
    ]
    if any(outline != outlines[0] for outline in outlines):
        raise ValueError("prompts that differ in place or length cannot share a call")
    if prompts[0] is None:
        return None

    def joined(layer: int, index: int) -> Tensor:
        parts = []
        for one, size in zip(spread, sizes, strict=True):
            tokens = one[layer][index].tokens
            tokens = tokens.reshape((1,) * (dims - tokens.dim()) + tokens.shape)
            parts.append(tokens.expand(size, *tokens.shape[1:]))
        return torch.cat(parts)

    return {
        layer: tuple(replace(p, tokens=joined(layer, i)) for i, p in enumerate(entry))
        for layer, entry in spread[0].items()
    }


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
    length = x.shape[1]
    at = length - prompt.drop if prompt.at is None else prompt.at
    if at < 1 or at + prompt.drop > length:
        raise ValueError(
            f"cannot drop {prompt.drop} tokens at position {at} of a sequence of {length} tokens"
        )
    tokens = tokens.to(x.dtype).expand(x.shape[0], -1, -1)
    # the gradients of a split are put together at once, those of slices one after the other
    before, _, behind = x.split((at, prompt.drop, length - at - prompt.drop), dim=1)
    return torch.cat([before, tokens, behind], dim=1)
