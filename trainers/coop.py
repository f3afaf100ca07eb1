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

from adaptation.learners import ContextLearner, check_context, start_of_context
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


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
        check_context(cfg.TRAINER[self.node], self.node)

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> ContextLearner:
        node = cfg.TRAINER[cls.node]
        ctx = start_of_context(clip, node, cls.node, len(classnames))
        return ContextLearner(ctx, node.CLASS_TOKEN_POSITION, classnames)
