"""CLIP's encoders with prompts as public code computes them: module by module, length first.

They run a model as it stands, whatever somebody hooked, wrapped or replaced in it, with the shapes
of OpenAI's package, and are the measure of the fast ones: all positions of every text of full
context length, all classes in one batch, prompts written over what stands at their place in front
of every block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .changes import BlockChange, Changes, LowRank, Norm, Prompt, splice
from .packing import PackedText, check_context, check_places, check_text_prompt
from .patched import changed_part_of_block, changed_stack

if TYPE_CHECKING:
    from .model import CLIP, VisionTransformer


def encode_text(clip: CLIP, text: PackedText, changes: Changes) -> Tensor:
    """What ``CLIP.encode_text`` gives; a sequence is longer than the context in no block.

    Raises:
        ValueError: as ``CLIP.encode_text``, or see ``_run_blocks``.
    """
    _check_depth(changes, clip.transformer)
    batch = changes.batch_size
    if batch is not None:
        return torch.stack([encode_text(clip, text, changes.of_sample(b)) for b in range(batch)])

    ids = F.pad(text.ids, (0, clip.context_length - text.ids.shape[1]))
    x, end = clip.token_embedding(ids).to(clip.dtype), ids.argmax(dim=-1)
    lengths = text.lengths

    def insert_prompts(x: Tensor, prompts: tuple[Prompt, ...]) -> Tensor:
        """``(C, length, d)`` to the same with prompts, of the context's length."""
        nonlocal end, lengths
        for prompt in prompts:
            check_text_prompt(prompt, len(lengths))
            at = prompt.at if isinstance(prompt.at, tuple) else (prompt.at,) * len(lengths)
            check_places(prompt, at, lengths, 0)
            x, more = _insert(x, prompt), prompt.growth
            end, lengths = end + more, tuple(length + more for length in lengths)
        check_context(max(lengths), clip.context_length)
        # the masks are of this length; what comes behind the end is not seen
        return F.pad(x, (0, 0, 0, clip.context_length - x.shape[1]))

    x = insert_prompts(x, changes[0].prompts) + clip.positional_embedding.to(clip.dtype)
    x = _run_blocks(clip.transformer, x, changes, insert_prompts)
    x = clip.ln_final(x).to(clip.dtype)
    return x[torch.arange(len(x), device=x.device), end] @ clip.text_projection


def encode_image(tower: VisionTransformer, image: Tensor, changes: Changes, n_rows: int) -> Tensor:
    """The first ``n_rows`` rows that the last block of an image encoder gives.

    Raises:
        ValueError: as there, or see ``_run_blocks``.
    """
    _check_depth(changes, tower.transformer)

    def insert_prompts(x: Tensor, prompts: tuple[Prompt, ...]) -> Tensor:
        for prompt in prompts:
            x = splice(x, prompt)
        return x

    dtype = tower.conv1.weight.dtype
    x = tower.conv1(image.to(dtype)).to(dtype).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = tower.ln_pre(insert_prompts(x + tower.positional_embedding.to(x.dtype), changes[0].prompts))
    return _run_blocks(tower.transformer, x, changes, insert_prompts)[:, :n_rows]


def _check_depth(changes: Changes, transformer: nn.Module) -> None:
    # what somebody put in its place need not know how many blocks it has
    if not changed_stack(transformer):
        changes.check_depth(len(transformer.resblocks))


def _run_blocks(
    transformer: nn.Module,
    x: Tensor,
    changes: Changes,
    insert_prompts: Callable[[Tensor, tuple[Prompt, ...]], Tensor],
) -> Tensor:
    """Run a transformer, length first, on a sequence that holds the prompts of block 0.

    Args:
        transformer: a tower's.
        x: ``(N, length, d)``.
        changes: of the blocks.
        insert_prompts: gives ``x`` with the prompts of one block.

    Raises:
        ValueError: changes of later blocks, or inside of blocks, where they would pass by what
            somebody put in their place.
    """
    if changes.deepest <= 0 and not changes.inside:
        return transformer(x.transpose(0, 1)).transpose(0, 1)
    if changed_stack(transformer):
        raise ValueError(
            "prompts in front of later blocks would pass by a transformer or a stack of blocks "
            "(resblocks) that is hooked, wrapped or replaced as a whole: hook, wrap or replace "
            "its blocks instead, or lower the prompt depth to 1"
        )
    for i, block in enumerate(transformer.resblocks):
        if i:
            x = insert_prompts(x, changes[i].prompts)
        if changes[i].inside:
            x = _changed_block(block, x, changes[i])
        else:
            x = block(x.transpose(0, 1)).transpose(0, 1)
    return x


def _changed_block(block: nn.Module, x: Tensor, change: BlockChange) -> Tensor:
    """A block on ``x``, ``(N, length, d)``, with a change inside: one sum after the other.

    Raises:
        ValueError: the block is not as built, so that the change would pass by what it does.
    """
    if changed_part_of_block(block) is not None:
        raise ValueError(
            "a change inside of a block would pass by what a hooked, wrapped or replaced block "
            "does: leave the blocks as they are, or use prompts alone"
        )
    attn = block.attn
    a = _norm(x, block.ln_1, change.ln_1)
    weights = zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
    terms = (change.query, change.key, change.value)
    q, k, v = (
        attn.split(_linear(a, weight, bias, term))
        for (weight, bias), term in zip(weights, terms, strict=True)
    )
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if block.attn_mask is not None:
        scores = scores + block.attn_mask.to(scores)
    attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(a.shape)
    h = x + _linear(attended, attn.out_proj.weight, attn.out_proj.bias, change.out)
    y = h + block.mlp(_norm(h, block.ln_2, change.ln_2))
    return y if change.branch is None else y + change.branch(a.float()).to(y.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, term: LowRank | None) -> Tensor:
    y = F.linear(x, weight, bias)
    return y if term is None else y + term(x)


def _norm(x: Tensor, norm: nn.LayerNorm, other: Norm | None) -> Tensor:
    if other is None:
        return norm(x)
    weight, bias = other
    y = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), norm.eps)
    return y.to(x.dtype)


def _insert(x: Tensor, prompt: Prompt) -> Tensor:
    """``(C, length, d)`` with the tokens of a text prompt in it."""
    if prompt.tokens.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"prompt of width {prompt.tokens.shape[-1]} for a text encoder of {x.shape[-1]}"
        )
    tokens = prompt.tokens.to(x.dtype).expand(len(x), -1, -1)
    if isinstance(prompt.at, tuple):
        rows = zip(x, tokens, prompt.at, strict=True)
        return torch.stack([_between(*row, prompt) for row in rows])
    return _between(x, tokens, prompt.at, prompt)


def _between(x: Tensor, tokens: Tensor, at: int, prompt: Prompt) -> Tensor:
    before, removed, behind = x.split((at, prompt.drop, x.shape[-2] - at - prompt.drop), dim=-2)
    return torch.cat([before, prompt.mixed(tokens, removed), behind], dim=-2)
