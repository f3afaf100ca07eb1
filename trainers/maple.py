"""MaPLe: multi-modal prompts, image prompts computed from text prompts.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117.

As in its code: the projections of the deeper prompts start as copies of one another, that of the
input prompt by itself; the input prompt starts from the first N_CTX tokens of CTX_INIT, so that
with two of "a photo of a" the words "a photo" are learned and "of a" stays frozen. Departures:
everything learned is float32 (there: part of it float16, and only fp16 works at all); widths are
the model's (there: 512 and 768); the checkpoint holds the learner only.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptation.learners import MappedPromptLearner, start_of_coupled_prompts
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Multi-modal prompt learning."""

    node = "MAPLE"
    model_name = "MultiModalPromptLearner"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MAPLE = node = CfgNode()
        #: prompt tokens per block
        node.N_CTX = 2
        #: words that the first text prompt starts from
        node.CTX_INIT = "a photo of a"
        node.PREC = "fp16"
        #: prompted blocks, input layer included
        node.PROMPT_DEPTH = 9

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> MappedPromptLearner:
        node = cfg.TRAINER[cls.node]
        return MappedPromptLearner(**start_of_coupled_prompts(clip, node, cls.node, "MaPLe"))
