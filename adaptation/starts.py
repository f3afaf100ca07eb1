"""Parts to build learners from: sizes of a CLIP, checks of settings, start values of prompts."""

from __future__ import annotations

import copy
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip.model import CLIP, VisionTransformer
from clip.tokens import decode, tokenize
from dassl.config import CfgNode
from dassl.utils import check_range


def warn_ignored(key: str, value: object, reason: str) -> None:
    """Warn that a config value has no effect."""
    warnings.warn(f"{key} = {value!r} is ignored: {reason}", stacklevel=3)


class Widths(NamedTuple):
    """Sizes of a CLIP that learners are built from; the vision ones are 0 without a ViT."""

    text: int
    text_layers: int
    vision: int
    vision_layers: int

    @property
    def layers(self) -> int:
        """Number of blocks that both encoders have."""
        return min(self.text_layers, self.vision_layers)


def clip_widths(clip: CLIP) -> Widths:
    """Return widths and numbers of blocks of both encoders."""
    vision = clip.visual.transformer if isinstance(clip.visual, VisionTransformer) else None
    return Widths(
        text=clip.transformer.width,
        text_layers=clip.transformer.layers,
        vision=vision.width if vision else 0,
        vision_layers=vision.layers if vision else 0,
    )


def check_depth(depth: int, n_layers: int, key: str, lowest: int = 1) -> None:
    """Check a prompt depth against the number of blocks.

    Raises:
        ValueError: the depth is below ``lowest`` or above ``n_layers``; the text names ``key``.
    """
    if not lowest <= depth <= n_layers:
        raise ValueError(f"{key} is {depth}: this backbone takes {lowest} to {n_layers}")


def check_least(node: CfgNode, name: str, least: int, *keys: str) -> None:
    """Check that settings are at least ``least``.

    Args:
        node: config node of the method.
        name: of the node, like "TRAINER.MMLOP".
        least: smallest value that is allowed.
        keys: of the settings; those that the node lacks are passed over.

    Raises:
        ValueError: a value is smaller; the text names its key.
    """
    check_range(node, name, least, math.inf, *keys)


def require_vit(clip: CLIP, method: str) -> Widths:
    """Return the widths of a CLIP whose image encoder is a vision transformer.

    Raises:
        ValueError: it is not one; the text names ``method``.
    """
    widths = clip_widths(clip)
    if not widths.vision_layers:
        raise ValueError(
            f"{method} puts prompts into the image tower and needs a vision transformer: "
            "choose a ViT as MODEL.BACKBONE.NAME"
        )
    return widths


def context_init(clip: CLIP, words: str, n_ctx: int) -> tuple[Tensor | None, str]:
    """Return start values for a context, and the template with the words that stay frozen.

    The first ``n_ctx`` tokens of ``words`` are learned and the rest stays hand-written, as in
    MaPLe's code and its successors: with two tokens, "a photo of a" leaves "of a {}.".

    Args:
        clip: the frozen model.
        words: hand-written context, underscores read as spaces; may be empty.
        n_ctx: number of learned tokens.

    Returns:
        ``(n_ctx, d_text)`` token embeddings, or ``None`` if there are too few words and the start
        has to be random; and the template.

    Raises:
        ValueError: a word is not one token.
    """
    split = words.replace("_", " ").split()
    token_ids = tokenize(" ".join(split))[0]
    token_ids = token_ids[1 : int(token_ids.argmax())]
    if not split:
        return None, "{}."
    if n_ctx > len(token_ids):
        warn_ignored("CTX_INIT", words, f"{len(token_ids)} tokens cannot start {n_ctx}")
        return None, "{}."
    if len(split) != len(token_ids):
        raise ValueError(
            f"CTX_INIT {words!r}: {len(split)} words but {len(token_ids)} tokens; "
            "use words of one token each, or leave CTX_INIT empty"
        )
    with torch.no_grad():
        start = clip.token_embedding(token_ids[:n_ctx].to(clip.token_embedding.weight.device))
    return start.float().clone(), " ".join([*split[n_ctx:], "{}."])


def token_embeddings(clip: CLIP, words: str, n: int) -> tuple[Tensor, str]:
    """Return the embeddings ``(n, d_text)`` of a text's first tokens, and the rest of the text.

    Args:
        clip: the frozen model.
        words: hand-written text.
        n: number of tokens, at most those that the text has.
    """
    token_ids = tokenize(words)[0]
    token_ids = token_ids[1 : int(token_ids.argmax())]
    with torch.no_grad():
        start = clip.token_embedding(token_ids[:n].to(clip.token_embedding.weight.device))
    return start.float().clone(), decode(token_ids[n:])


def normal_parameter(*shape: int, std: float = 0.02) -> nn.Parameter:
    """Make a parameter of this shape with entries from N(0, std^2)."""
    return nn.Parameter(torch.empty(*shape).normal_(std=std))


def copies(module: nn.Module, n: int) -> nn.ModuleList:
    """Make ``n`` copies of a module."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(n))


def start_context(clip: CLIP, words: str, n_ctx: int, key: str) -> tuple[Tensor, str]:
    """Return start values for the input prompt, from words or at random, and the template.

    Args:
        clip, words, n_ctx: as for ``context_init``.
        key: config key of ``n_ctx``, for errors.

    Returns:
        ``(n_ctx, d_text)`` start values, and the template.

    Raises:
        ValueError: ``n_ctx`` is less than 1, or a word is not one token.
    """
    if n_ctx < 1:
        raise ValueError(f"{key} is {n_ctx}: use 1 or more")
    start, template = context_init(clip, words, n_ctx)
    if start is None:
        start = torch.empty(n_ctx, clip_widths(clip).text).normal_(std=0.02)
    return start, template
