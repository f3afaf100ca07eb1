"""CoCoOp: conditional context optimization, a context that depends on the image.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv 2203.05557.
A small network maps the image's unit-norm feature to a shift of all context vectors.

As in its code: the hidden layer of the network is a sixteenth as wide as the joint embedding.
Departures: the texts of all images of a batch are encoded in one call (there: a Python loop);
everything learned is float32; the checkpoint holds the learner only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.learner import Prediction, PromptLearner, Steps
from adaptation.starts import start_context
from adaptation.trainer import PromptTrainer
from clip.changes import LayerChanges, Prompt
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class ConditionalContextLearner(PromptLearner):
    """Context vectors, and a network that shifts them for each image.

    Args:
        ctx: ``(n, d_text)`` start values of the context.
        embed_dim: width of the image features.
    """

    template = "{}."
    image_conditioned = True

    def __init__(self, ctx: Tensor, embed_dim: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        hidden = embed_dim // 16
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(embed_dim, hidden),
                relu=nn.ReLU(),
                linear2=nn.Linear(hidden, ctx.shape[-1]),
            )
        )

    def text_changes(self) -> LayerChanges:
        return {0: Prompt(self.ctx, at=1)}

    def forward(self, clip: Steps, image: Tensor) -> Prediction:
        image_features = self.image_features(clip, image)  # (B, embed_dim)
        shift = self.meta_net(image_features)[:, None, None]  # (B, 1, 1, d_text)
        text = clip.encode_text({0: Prompt(self.ctx + shift, at=1)})  # (B, C, embed_dim)
        text_features = F.normalize(text, dim=-1)
        return Prediction(image_features, text_features, clip.logits(image_features, text_features))


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional context optimization."""

    node = "COCOOP"
    draws_as_published = True

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.COCOOP = node = CfgNode()
        #: number of context vectors; ignored with CTX_INIT, which gives one per word
        node.N_CTX = 16
        #: initial words
        node.CTX_INIT = ""
        node.PREC = "fp16"

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> ConditionalContextLearner:
        node = cfg.TRAINER[cls.node]
        words = node.CTX_INIT
        n_ctx = len(words.replace("_", " ").split()) or node.N_CTX
        ctx, _ = start_context(clip, words, n_ctx, "TRAINER.COCOOP.N_CTX")
        return ConditionalContextLearner(ctx, clip.text_projection.shape[1])
