"""CoOp: context optimization, learned context vectors around the class name.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134.

As in its code: with CTX_INIT the context has as many vectors as the text has words, and N_CTX and
CSC are ignored (here with a warning); the length of a class name does not count the full stop.
Departures from its code: the context is a float32 parameter in every precision (there: float16 in
fp16); the checkpoint holds ``ctx`` only, not the embedded class names; CTX_INIT words that are not
one token each are an error (there: prefix and suffix are cut at the wrong places).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptation.learner import PromptLearner
from adaptation.starts import clip_widths, start_context, warn_ignored
from adaptation.trainer import PromptTrainer
from clip.changes import LayerChanges, Prompt
from clip.model import CLIP
from clip.tokens import tokenize
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY

#: where the class name stands relative to the context
POSITIONS = ("end", "middle", "front")


class ContextLearner(PromptLearner):
    """Learned context vectors in the input of the text encoder.

    Args:
        ctx: start values, ``(n_ctx, d_text)`` shared or ``(C, n_ctx, d_text)`` class-specific.
        position: where the class name stands: at the ``end``, in the ``middle`` or in ``front``.
        name_lengths: number of tokens of every class name; used for ``middle`` and ``front``.
    """

    template = "{}."

    def __init__(self, ctx: Tensor, position: str, name_lengths: Sequence[int]) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        self.class_specific = ctx.dim() == 3
        self.position, self.name_lengths = position, tuple(name_lengths)

    def text_changes(self) -> LayerChanges:
        if self.position == "end":
            return {0: Prompt(self.ctx, at=1)}
        n_before = self.ctx.shape[-2] // 2 if self.position == "middle" else 0
        after_name = tuple(1 + n_before + length for length in self.name_lengths)
        before = (Prompt(self.ctx[..., :n_before, :], at=1),) if n_before else ()
        return {0: (*before, Prompt(self.ctx[..., n_before:, :], at=after_name))}


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context optimization."""

    node = "COOP"
    draws_as_published = True

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.COOP = CfgNode()
        #: number of context vectors
        cfg.TRAINER.COOP.N_CTX = 16
        #: class-specific contexts
        cfg.TRAINER.COOP.CSC = False
        #: initial words
        cfg.TRAINER.COOP.CTX_INIT = ""
        cfg.TRAINER.COOP.PREC = "fp16"
        #: end, middle or front
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        position = cfg.TRAINER.COOP.CLASS_TOKEN_POSITION
        if position not in POSITIONS:
            raise ValueError(
                f"TRAINER.COOP.CLASS_TOKEN_POSITION is {position!r}: use {', '.join(POSITIONS)}"
            )
        if cfg.TRAINER.COOP.N_CTX < 1:
            raise ValueError(f"TRAINER.COOP.N_CTX is {cfg.TRAINER.COOP.N_CTX}: use 1 or more")

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> ContextLearner:
        node = cfg.TRAINER[cls.node]
        words = node.CTX_INIT.replace("_", " ").split()
        if words:
            n_words = len(words)
            if node.CSC:
                warn_ignored("TRAINER.COOP.CSC", True, "CTX_INIT gives a shared context")
            if node.N_CTX != n_words:
                warn_ignored("TRAINER.COOP.N_CTX", node.N_CTX, f"CTX_INIT has {n_words} words")
            ctx, _ = start_context(clip, node.CTX_INIT, n_words, "TRAINER.COOP.N_CTX")
        else:
            shape = (node.N_CTX, clip_widths(clip).text)
            ctx = torch.empty((len(classnames), *shape) if node.CSC else shape).normal_(std=0.02)
        names = tokenize([name.replace("_", " ") for name in classnames], truncate=True)
        name_lengths = (names.argmax(dim=-1) - 1).tolist()
        return ContextLearner(ctx, node.CLASS_TOKEN_POSITION, name_lengths)
