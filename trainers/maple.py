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

from torch import nn

from adaptation.learners import CoupledPromptLearner
from adaptation.starts import check_depth, clip_widths, copies, require_vit, start_context
from adaptation.trainer import PromptTrainer
from clip.changes import LayerChanges, deep_prompts
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class MaPLeLearner(CoupledPromptLearner):
    """Text prompts, and one linear map per prompted block to the image prompts.

    Args:
        ctx: ``(n, d_text)`` start of the input prompt.
        depth: prompted blocks, input layer included.
        vision_width: width of the image encoder.
        template: frozen words around the class name.
    """

    def __init__(self, ctx, depth: int, vision_width: int, template: str) -> None:
        super().__init__(ctx, depth, vision_width, template)
        self.compound_prompt_projections = copies(nn.Linear(ctx.shape[-1], vision_width), depth - 1)

    def image_changes(self) -> LayerChanges:
        deeper = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        later = (projection(text) for projection, text in deeper)
        return deep_prompts([self.proj(self.ctx), *later])


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
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> MaPLeLearner:
        node, widths = cfg.TRAINER[cls.node], clip_widths(clip)
        require_vit(widths, "MaPLe")
        n_blocks = min(widths.text_layers, widths.vision_layers)
        check_depth(node.PROMPT_DEPTH, n_blocks, "TRAINER.MAPLE.PROMPT_DEPTH")
        ctx, template = start_context(clip, node.CTX_INIT, node.N_CTX, "TRAINER.MAPLE.N_CTX")
        return MaPLeLearner(
            ctx, depth=node.PROMPT_DEPTH, vision_width=widths.vision, template=template
        )
