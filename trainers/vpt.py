"""VPT: deep visual prompt tuning of CLIP's image encoder, with fixed text.

Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119. The form is that of the MaPLe
code: prompts follow the patches, the classifier is the text "a photo of a <class>.".

As in that code: CTX_INIT is not used, the text is the same for every data set. Departures: every
precision works (there: amp calls backward on the logits); prompts are not rounded to half precision
on use; the checkpoint holds the prompts only; text features are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptation.learners import DeepPromptLearner, build_deep_prompts
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Deep visual prompt tuning."""

    node = "VPT"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.VPT = node = CfgNode()
        #: prompt tokens per block
        node.N_CTX_VISION = 2
        #: there for upstream's config files; has no effect
        node.CTX_INIT = "a photo of a"
        node.PREC = "fp16"
        #: prompted blocks, input layer included
        node.PROMPT_DEPTH_VISION = 1

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> DeepPromptLearner:
        node = cfg.TRAINER[cls.node]
        vision = (node.N_CTX_VISION, node.PROMPT_DEPTH_VISION)
        return build_deep_prompts(clip, method="VPT", node=cls.node, text=None, vision=vision)
