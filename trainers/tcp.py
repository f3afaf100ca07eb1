"""TCP: a learned context, and class tokens that a network makes of the frozen class features.

Yao et al., "TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model", CVPR 2024,
arXiv 2311.18231; code: htyao89/Textual-based_Class-aware_prompt_tuning.

As in its code: four context vectors in front, which from the ninth text block on (number 8 from 0)
are replaced by the class's own four, without a positional embedding; a hidden layer a quarter as
wide as the joint embedding; teacher and prompt read texts of their own per data set, and Cars'
prompt text has no full stop; Adam with eps 1e-3 (``OPTIM.ADAM_EPS`` in the shipped files; there set
by hand, as the readme asks). Departures: settings have a node of their own (there: CoOp's, whose W
had no effect); everything learned is float32, so every ``PREC`` works; CTX_INIT is the text (there:
a switch for "a photo of a"), any number of context vectors works (there: four), and class-specific
ones are not offered (there: an error); the 25 epochs of ImageNet and SUN397 stand in a config file
(there: in ``train.py``, over the command line).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.learner import Prediction, PromptLearner, Steps
from adaptation.losses import cosine_distance
from adaptation.starts import check_depth, clip_widths, start_context
from adaptation.templates import dataset_template
from adaptation.trainer import PromptTrainer
from clip.changes import LayerChanges, Prompt
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY

#: texts of the frozen CLIP that are not the data set's zero-shot template
TEACHER = {
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "FGVCAircraft": "a photo of an aircraft {}.",
    "Food101": "a photo of a {}, a type of food.",
}
#: what stands behind the context, where it is more than the class name
TEMPLATES = {
    "OxfordPets": "{}, a type of pet.",
    "OxfordFlowers": "{}, a type of flower.",
    "FGVCAircraft": "{}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "StanfordCars": "{}, a type of car",
    "Food101": "{}, a type of food.",
    "UCF101": "person doing {}.",
}


class QuickGELU(nn.Module):
    """Activation ``x sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class ClassAwareLearner(PromptLearner):
    """Context vectors, and a network that makes tokens of the frozen text features.

    Args:
        ctx: ``(n, d_text)`` start values of the context.
        embed_dim: width of the text features.
        block: text block in front of which the class tokens replace the context, from 0.
        template: frozen words around the class name.
    """

    def __init__(self, ctx: Tensor, embed_dim: int, block: int, template: str) -> None:
        super().__init__()
        self.ctx, self.block, self.template = nn.Parameter(ctx), block, template
        hidden = embed_dim // 4
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(embed_dim, hidden),
                gelu=QuickGELU(),
                linear2=nn.Linear(hidden, ctx.numel()),
            )
        )

    def text_changes(self) -> LayerChanges:
        return {0: Prompt(self.ctx, at=1)}

    def class_tokens(self, frozen: Tensor) -> Tensor:
        """Return tokens ``(C, n, d_text)`` for frozen text features ``(C, embed_dim)``."""
        return self.meta_net(frozen).unflatten(-1, self.ctx.shape)

    def text_features(self, clip: Steps) -> Tensor:
        tokens = self.class_tokens(clip.frozen_text_features())
        classes = Prompt(tokens, at=1, drop=len(self.ctx))
        text = clip.encode_text({0: Prompt(self.ctx, at=1), self.block: classes})
        return F.normalize(text, dim=-1)


@TRAINER_REGISTRY.register()
class TCP(PromptTrainer):
    """Textual-based class-aware prompt tuning."""

    node = "TCP"
    bound_settings = ("BLOCK",)

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.TCP = node = CfgNode()
        #: number of context vectors, and of class tokens
        node.N_CTX = 4
        #: initial words
        node.CTX_INIT = ""
        #: text block in front of which the class tokens replace the context, from 0
        node.BLOCK = 8
        #: weight of the distance to the frozen text features
        node.W = 8.0
        node.PREC = "fp16"

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> ClassAwareLearner:
        node = cfg.TRAINER[cls.node]
        check_depth(node.BLOCK, clip_widths(clip).text_layers - 1, "TRAINER.TCP.BLOCK")
        ctx, _ = start_context(clip, node.CTX_INIT, node.N_CTX, "TRAINER.TCP.N_CTX")
        template = TEMPLATES.get(cfg.DATASET.NAME, "{}.")
        return ClassAwareLearner(ctx, clip.text_projection.shape[1], node.BLOCK, template)

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        return (dataset_template(cfg.DATASET.NAME, TEACHER),)

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ce = F.cross_entropy(prediction.logits, label)
        kg = cosine_distance(prediction.text_features, self.model.frozen_text_features())
        return ce + self.node_cfg.W * kg, {"ce": ce, "kg": kg}
