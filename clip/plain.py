"""CLIP's encoders with prompts as public code computes them: module by module, length first.

They call every module with the shapes of OpenAI's package, so that hooked, wrapped and replaced
modules work, and compute all positions of every text at full context length, all classes in one
batch. The fast encoders are tested against them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .changes import BlockChange, Changes, LowRank, Norm, Prompt, splice
from .layers import at_least_float32, layer_norm
from .packing import PackedText, check_context, check_places, check_text_prompt, places
from .patched import changed_part_of_block, changed_stack, patched_function

if TYPE_CHECKING:
    from .layers import ResidualAttentionBlock, Transformer
    from .model import CLIP, VisionTransformer


def encode_text(clip: CLIP, text: PackedText, changes: Changes) -> Tensor:
    """Encode texts as ``CLIP.encode_text`` does.

    Returns:
        ``(C, embed_dim)``, or ``(B, C, embed_dim)`` if a prompt holds one set per sample.

    Raises:
        ValueError: see ``CLIP.encode_text`` and ``_run_blocks``.
    """
    _check_depth(changes, clip.transformer)
    batch = changes.batch_size
    if batch is not None:
        samples = (changes.of_sample(index) for index in range(batch))
        return torch.stack([encode_text(clip, text, sample) for sample in samples])

    ids = F.pad(text.ids, (0, clip.context_length - text.ids.shape[1]))  # (C, context_length)
    x = clip.token_embedding(ids).to(clip.dtype)  # (C, context_length, width)
    end, lengths = ids.argmax(dim=-1), text.lengths  # (C,) each

    def insert_prompts(x: Tensor, prompts: tuple[Prompt, ...]) -> Tensor:
        """Insert the prompts of a block into ``x``, ``(C, context_length, width)``."""
        nonlocal end, lengths
        for prompt in prompts:
            check_text_prompt(prompt, len(lengths))
            check_places(prompt, places(prompt, len(lengths)), lengths, 0)
            x, growth = _insert(x, prompt), prompt.growth
            end, lengths = end + growth, tuple(length + growth for length in lengths)
        check_context(max(lengths), clip.context_length)
        # the blocks' masks have this length; positions after the end of text are not seen
        return F.pad(x, (0, 0, 0, clip.context_length - x.shape[1]))

    x = changes[0].entered(insert_prompts(x, changes.at_input))
    x = x + clip.positional_embedding.to(clip.dtype)
    x = _run_blocks(clip.transformer, x, changes, insert_prompts)  # (C, context_length, width)
    x = clip.ln_final(x).to(clip.dtype)
    return x[torch.arange(len(x), device=x.device), end] @ clip.text_projection


def encode_image(tower: VisionTransformer, image: Tensor, changes: Changes, n_rows: int) -> Tensor:
    """Compute the first ``n_rows`` positions of an image encoder's last block.

    Returns:
        ``(N, n_rows, width)``, before ``ln_post``.

    Raises:
        ValueError: see ``VisionTransformer.forward`` and ``_run_blocks``.
    """
    _check_depth(changes, tower.transformer)

    def insert_prompts(x: Tensor, prompts: tuple[Prompt, ...]) -> Tensor:
        for prompt in prompts:
            x = splice(x, prompt)
        return x

    dtype = tower.conv1.weight.dtype
    x = tower.conv1(image.to(dtype)).to(dtype).flatten(2).transpose(1, 2)  # (N, patches, width)
    cls = tower.class_embedding.to(x.dtype).expand(len(x), 1, -1)  # (N, 1, width)
    x = torch.cat([cls, x], dim=1)  # (N, 1 + patches, width)
    x = tower.ln_pre(insert_prompts(x + tower.positional_embedding.to(x.dtype), changes.at_input))
    x = changes[0].entered(x)
    return _run_blocks(tower.transformer, x, changes, insert_prompts)[:, :n_rows]


def _check_depth(changes: Changes, transformer: Transformer) -> None:
    # a replaced transformer may have no list of blocks
    if not changed_stack(transformer):
        changes.check_depth(len(transformer.resblocks))


def _run_blocks(
    transformer: Transformer,
    x: Tensor,
    changes: Changes,
    insert_prompts: Callable[[Tensor, tuple[Prompt, ...]], Tensor],
) -> Tensor:
    """Run a transformer on sequences that already hold the prompts of block 0.

    Args:
        transformer: a tower's, called length first.
        x: ``(N, length, d)``, with the prompts of the input layer.
        changes: of the blocks.
        insert_prompts: inserts the prompts of one block into ``x``.

    Returns:
        ``(N, length, d)`` output of the last block.

    Raises:
        ValueError: changes of later blocks, or of blocks themselves, that would bypass a hooked,
            wrapped or replaced module.
    """
    if changes.deepest <= 0 and not changes.inside:
        x = insert_prompts(x, changes.in_front_of(0))
        return transformer(x.transpose(0, 1)).transpose(0, 1)
    if changed_stack(transformer):
        raise ValueError(
            "prompts in front of later blocks and changes inside of blocks would pass by a "
            "transformer or a stack of blocks (resblocks) that is hooked, wrapped or replaced as a "
            "whole: hook, wrap or replace its blocks instead, or leave out changes inside and "
            "lower the prompt depth to 1"
        )
    for i, block in enumerate(transformer.resblocks):
        x = insert_prompts(x, changes.in_front_of(i))
        if changes[i].inside:
            x = _changed_block(block, x, changes[i])
        else:
            x = block(x.transpose(0, 1)).transpose(0, 1)
    return x


def _changed_block(block: ResidualAttentionBlock, x: Tensor, change: BlockChange) -> Tensor:
    """Run a block that itself changes on ``x``, ``(N, length, d)``, written out step by step.

    Raises:
        ValueError: the block is hooked, wrapped or replaced, which the change would bypass.
    """
    if patched_function() or changed_part_of_block(block) is not None:
        raise ValueError(
            "a change inside of a block would pass by what a hooked, wrapped, replaced or patched "
            "block does: leave the blocks as they are, or use prompts alone"
        )
    attn = block.attn
    normed = _norm(x, block.ln_1, change.ln_1)  # (N, length, d)
    weights = zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
    terms = (change.query, change.key, change.value)
    q, k, v = (  # (N, heads, length, d / heads) each
        attn.split(_linear(normed, weight, bias, term))
        for (weight, bias), term in zip(weights, terms, strict=True)
    )
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (N, heads, length, length)
    if block.attn_mask is not None:
        scores = scores + block.attn_mask.to(scores)
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape)  # (N, length, d)
    h = x + _linear(attended, attn.out_proj.weight, attn.out_proj.bias, change.out)
    y = h + block.mlp(_norm(h, block.ln_2, change.ln_2))
    if change.branch is None:
        return y
    return y + change.branch(at_least_float32(normed)).to(y.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, term: LowRank | None) -> Tensor:
    y = F.linear(x, weight, bias)
    return y if term is None else y + term(x).to(y.dtype)


def _norm(x: Tensor, norm: nn.LayerNorm, other: Norm | None) -> Tensor:
    return norm(x) if other is None else layer_norm(x, *other, norm.eps)


def _insert(x: Tensor, prompt: Prompt) -> Tensor:
    """Insert the tokens of a text prompt into ``x``: ``(C, length + growth, d)``."""
    if prompt.tokens.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"prompt of width {prompt.tokens.shape[-1]} for a text encoder of {x.shape[-1]}"
        )
    tokens = prompt.tokens.to(x.dtype).expand(len(x), -1, -1)
    at = places(prompt, len(x))
    if isinstance(prompt.at, tuple):
        rows = zip(x, tokens, at, strict=True)
        return torch.stack([_insert_at(*row, prompt) for row in rows])
    return _insert_at(x, tokens, at[0], prompt)


def _insert_at(x: Tensor, tokens: Tensor, at: int, prompt: Prompt) -> Tensor:
    before, removed, behind = x.split((at, prompt.drop, x.shape[-2] - at - prompt.drop), dim=-2)
    return torch.cat([before, prompt.mixed(tokens, removed), behind], dim=-2)
