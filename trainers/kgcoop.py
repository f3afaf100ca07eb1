"""KgCoOp: a learned context whose class features stay near those of hand-written text.

Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023,
arXiv 2303.13283; code: htyao89/KgCoOp.

As in its code: the distance is one minus the cosine (the paper: squared Euclidean distance, which
is twice that); the teacher reads one text per data set, which differs from CoOp's for DTD; the
class name is always at the end. Departures: settings have a node of their own (there: CoOp's);
CTX_INIT is the text (there: a switch for "a photo of a"); the context is float32 in every
precision, and ``PREC`` amp works; the unused tensors of its checkpoints (``bias_vectors``,
``meta_net``) are accepted, and not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from adaptation.learner import Prediction
from adaptation.learners import ContextLearner, check_context, start_of_context
from adaptation.losses import cosine_distance
from adaptation.templates import dataset_template
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY

#: texts of the frozen CLIP that are not the data set's zero-shot template
TEACHER = {"DescribableTextures": "a photo of a {}, a type of texture."}

#: what the published code stores and never uses
UNUSED = ("bias_vectors", "meta_net.")


class KnowledgeGuidedContext(ContextLearner):
    """CoOp's context, read from KgCoOp's checkpoints."""

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in weights.items() if not key.startswith(UNUSED)}


@TRAINER_REGISTRY.register()
class KgCoOp(PromptTrainer):
    """Knowledge-guided context optimization."""

    node = "KGCOOP"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.KGCOOP = node = CfgNode()
        #: number of context vectors; ignored with CTX_INIT, which gives one per word
        node.N_CTX = 4
        #: class-specific contexts
        node.CSC = False
        #: initial words
        node.CTX_INIT = ""
        #: weight of the distance to the frozen text features
        node.W = 8.0
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_context(cfg.TRAINER[self.node], self.node)

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> KnowledgeGuidedContext:
        ctx = start_of_context(clip, cfg.TRAINER[cls.node], cls.node, len(classnames))
        return KnowledgeGuidedContext(ctx, "end", classnames)

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        return (dataset_template(cfg.DATASET.NAME, TEACHER),)

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ce = F.cross_entropy(prediction.logits, label)
        kg = cosine_distance(prediction.text_features, self.model.frozen_text_features())
        return ce + self.node_cfg.W * kg, {"ce": ce, "kg": kg}
