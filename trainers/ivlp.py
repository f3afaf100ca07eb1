"""IVLP: independent vision-language prompting, deep prompts in both encoders without coupling.

The baseline of Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117.
With PROMPT_DEPTH_VISION 0 it is deep language prompting.

As in its code: the first text prompt starts from the first N_CTX_TEXT tokens of CTX_INIT and the
other words stay frozen behind it; if there are fewer words than tokens, it starts at random.
Departures: prompts are float32 parameters and are not rounded to half precision on use; the
checkpoint holds the prompts only.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptation.learners import DeepPromptLearner, build_deep_prompts
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Independent vision-language prompting."""

    node = "IVLP"
    model_name = "VLPromptLearner"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.IVLP = node = CfgNode()
        #: image prompt tokens per block
        node.N_CTX_VISION = 2
        #: text prompt tokens per block
        node.N_CTX_TEXT = 2
        #: words that the first text prompt starts from
        node.CTX_INIT = "a photo of a"
        node.PREC = "fp16"
        #: prompted blocks, input layer included; 0 for no image prompts
        node.PROMPT_DEPTH_VISION = 9
        #: the same of the text encoder, at least 1
        node.PROMPT_DEPTH_TEXT = 9

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> DeepPromptLearner:
        node = cfg.TRAINER[cls.node]
        vision = (node.N_CTX_VISION, node.PROMPT_DEPTH_VISION) if node.PROMPT_DEPTH_VISION else None
        return build_deep_prompts(
            clip,
            method="IVLP",
            node=cls.node,
            text=(node.N_CTX_TEXT, node.PROMPT_DEPTH_TEXT),
            vision=vision,
            ctx_init=node.CTX_INIT,
        )
