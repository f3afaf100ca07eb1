"""ProGrad: a learned context whose gradient does not work against hand-written text.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv 2205.14865;
code: BeierZhu/Prompt-align. Where the gradient of the cross-entropy points against that of a second
loss, the divergence from the frozen CLIP's class distribution, the conflicting part is taken out of
it.

As in its code: the second loss is the cross-entropy with the teacher's distribution, times T^2
(called KL there; only the direction of its gradient counts); the whole context is one vector in the
projection, with CSC that of all classes together; with CTX_INIT the context ends with the words of
the data set's text, has zeros in front of them, and counts words where the text has tokens: a word
that a comma leaves over stays frozen in front of the class name. Departures: settings have a node
of their own (there: CoOp's and ``LOSS``); the class name may be in the middle (an error there); the
context is float32 in every precision, and ``PREC`` amp works; the teacher shares the student's
image features, in the run's precision (there: float32); data sets without a text there take what
their own template has in front of the name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.learner import Prediction
from adaptation.learners import ContextLearner, check_context, random_context
from adaptation.starts import token_embeddings, warn_ignored
from adaptation.templates import DEFAULT_TEMPLATE, dataset_template
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY

#: texts of the frozen CLIP, whose words start the context
TEMPLATES = {
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a type of food, a photo of {}.",
    "UCF101": "a photo of a person doing {}.",
}


def template_of(name: str) -> str:
    """Return the text for the data set registered as ``name``, which ends with the class name."""
    template = dataset_template(name, TEMPLATES)
    return template if template.endswith(" {}.") else DEFAULT_TEMPLATE


@TRAINER_REGISTRY.register()
class ProGrad(PromptTrainer):
    """Prompt-aligned gradient."""

    node = "PROGRAD"
    guide = "kl"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.PROGRAD = node = CfgNode()
        #: number of context vectors
        node.N_CTX = 16
        #: class-specific contexts
        node.CSC = False
        #: start from the words of the data set's text; ignores CSC
        node.CTX_INIT = True
        #: end, middle or front
        node.CLASS_TOKEN_POSITION = "end"
        #: temperature of the second loss
        node.T = 1.0
        #: share of the conflicting part that is taken out of the gradient
        node.LAMBDA = 1.0
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_context(cfg.TRAINER[self.node], self.node)
        if cfg.TRAINER.PROGRAD.T <= 0:
            raise ValueError(f"TRAINER.PROGRAD.T is {cfg.TRAINER.PROGRAD.T}: use more than 0")

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> ContextLearner:
        node = cfg.TRAINER[cls.node]
        position = node.CLASS_TOKEN_POSITION
        if not node.CTX_INIT:
            ctx = random_context(clip, node, len(classnames))
            return ContextLearner(ctx, position, classnames)
        if node.CSC:
            warn_ignored("TRAINER.PROGRAD.CSC", True, "CTX_INIT gives a shared context")
        words = template_of(cfg.DATASET.NAME).removesuffix(" {}.")
        n_words = len(words.split())
        if node.N_CTX < n_words:
            raise ValueError(
                f"TRAINER.PROGRAD.N_CTX is {node.N_CTX}: the start {words!r} needs {n_words} or "
                "more; or set TRAINER.PROGRAD.CTX_INIT False"
            )
        start, rest = token_embeddings(clip, words, n_words)
        ctx = torch.cat([start.new_zeros(node.N_CTX - n_words, start.shape[1]), start])
        return ContextLearner(ctx, position, classnames, f"{rest} {{}}.".lstrip())

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        return (template_of(cfg.DATASET.NAME),)

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # there are no image prompts: the teacher's image features are the student's
        teacher = self.model.logits(prediction.image_features, self.model.frozen_text_features())
        t = self.node_cfg.T
        kl = t**2 * F.cross_entropy(prediction.logits / t, (teacher / t).softmax(dim=-1))
        return F.cross_entropy(prediction.logits, label), {"kl": kl}

    def edit_gradient(self, gradient: Tensor, guide: Tensor) -> Tensor:
        """Take out of a gradient what points against the guide, if it does."""
        direction = guide / guide.norm()
        along = (gradient * direction).sum()
        projected = gradient - self.node_cfg.LAMBDA * along * direction
        return torch.where(along < 0, projected, gradient)
