"""TaskRes: a learned residual for each class, added to CLIP's raw text features.

Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv 2211.10277;
code: geekyutao/TaskRes.

As in its code: the base are raw features averaged over the texts, eight on ImageNet and elsewhere
the data set's own, with the underscores of class names left in; it is not normalised before the
residual is added, so that a step's size depends on its norm; the base is stored with the residuals,
and both are what ImageNet's variants are classified with. ``ENHANCED_BASE`` names a file with a
tuned text projection, as the authors publish them for ResNet-50. Their first stage, which learned
these files, is in neither code nor settings (optimiser and learning rate are not known), and so not
here. Departures: every ``PREC`` works (there fp16 alone on a GPU), and the enhanced base is used in
each (there in fp16 alone, and ignored without a word in others), the texts are the same however
often a model is built (there a list grows), and settings that are never read (``N_CTX`` and the
like) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.learner import Steps
from adaptation.learners import BaseFeaturesLearner, stored_projection
from adaptation.templates import classifier_templates
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class ResidualLearner(BaseFeaturesLearner):
    """Residuals of the text features.

    Args:
        n_classes: number of classes.
        embed_dim: width of the features.
        scale: factor of the residuals.
        enhanced_base: file of a text projection that the base is computed with; empty for CLIP's.
    """

    class_rows = ("base_text_features", "text_feature_residuals")

    def __init__(self, n_classes: int, embed_dim: int, scale: float, enhanced_base: str) -> None:
        super().__init__(n_classes, embed_dim)
        self.scale, self.enhanced_base = scale, enhanced_base
        self.text_feature_residuals = nn.Parameter(self.base_text_features.clone())

    def start(self, clip: Steps) -> None:
        if not self.enhanced_base:
            return super().start(clip)
        key = "TRAINER.TASKRES.ENHANCED_BASE"
        projection = stored_projection(self.enhanced_base, key)
        try:
            self.base_text_features.copy_(clip.raw_text_features(projection))
        except ValueError as error:
            raise ValueError(f"{key}: {self.enhanced_base} holds {error}") from error

    def text_features(self, clip: Steps) -> Tensor:
        features = self.base_text_features + self.scale * self.text_feature_residuals
        return F.normalize(features, dim=-1)


@TRAINER_REGISTRY.register()
class TaskRes(PromptTrainer):
    """Task residual."""

    node = "TASKRES"
    bound_settings = ("RESIDUAL_SCALE",)

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.TASKRES = node = CfgNode()
        #: factor of the residuals
        node.RESIDUAL_SCALE = 0.5
        #: file of a tuned text projection, for an enhanced base; empty for CLIP's own
        node.ENHANCED_BASE = ""
        #: leave underscores in class names
        node.KEEP_UNDERSCORES = True
        node.PREC = "fp16"

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> ResidualLearner:
        node, width = cfg.TRAINER[cls.node], clip.text_projection.shape[1]
        learner = ResidualLearner(len(classnames), width, node.RESIDUAL_SCALE, node.ENHANCED_BASE)
        learner.keep_underscores = node.KEEP_UNDERSCORES
        return learner

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        return classifier_templates(cfg.DATASET.NAME)
