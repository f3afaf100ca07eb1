"""Text prompts that image prompts are computed from: what coupled methods share."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clip.model import CLIP
from clip.prompting import LayerPrompts, deep_prompts

from .learner import PromptLearner, clip_widths, context_init


def copies(module: nn.Module, n: int) -> nn.ModuleList:
    """``n`` modules that start equal."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(n))


def start_context(clip: CLIP, words: str, n_ctx: int, key: str) -> tuple[Tensor, str]:
    """Start of the input prompt ``(n_ctx, d_text)``, from words or at random, and the template.

    Raises:
        ValueError: fewer than one token; names ``key``.
    """
    if n_ctx < 1:
        raise ValueError(f"{key} is {n_ctx}: use 1 or more")
    start, template = context_init(clip, words, n_ctx)
    if start is None:
        start = torch.empty(n_ctx, clip_widths(clip).text).normal_(std=0.02)
    return start, template


class CoupledPromptLearner(PromptLearner):
    """Deep text prompts and the map from the input prompt to the first image prompt.

    Args:
        ctx: ``(n, d_text)`` start of the input prompt.
        depth: prompted blocks, input layer included.
        vision_width: of the image encoder.
        template: frozen words around the class name.
    """

    def __init__(self, ctx: Tensor, depth: int, vision_width: int, template: str) -> None:
        super().__init__()
        self.template = template
        self.ctx = nn.Parameter(ctx)
        self.proj = nn.Linear(ctx.shape[-1], vision_width)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(torch.empty(ctx.shape).normal_(std=0.02)) for _ in range(depth - 1)
        )

    def text_prompts(self) -> LayerPrompts:
        return deep_prompts([self.ctx, *self.compound_prompts_text], at=1)

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix("prompt_learner."): value for key, value in weights.items()}

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"prompt_learner.{key}": value for key, value in weights.items()}
