"""MMLoP: multi-modal low-rank prompting.

Ghiasvand, Ehsani Oskouie, Alizadeh, Pedarsani, "MMLoP: Multi-Modal Low-Rank Prompting for Efficient
Vision-Language Adaptation", arXiv 2602.21397v1 (ECCV 2026). No code of the authors is public;
equations and algorithm below are the paper's.

Both encoders get ``n`` prompt tokens at the input of each of their first ``J`` blocks. The prompts
of block ``l`` are products of low-rank factors, with one factor shared by the modalities (eq. 9):

    P_text[l] = U[l] V_text[l],    P_vision[l] = U[l] V_vision[l],

``U[l]`` of shape (n, r), ``V_text[l]`` (r, d_text), ``V_vision[l]`` (r, d_vision): in all
``J (n r + r (d_text + d_vision))`` trained numbers, 11 556 on ViT-B/16 with J = 9, n = 4, r = 1.
Every factor starts from N(0, 0.05^2) (algorithm 1, line 3).

Uniform drift correction (eq. 8): with ``w_c`` the frozen and ``w~_c`` the prompted unit-norm text
feature of class ``c``, and ``R_c = w~_c - w_c``, the classifier uses
``w^_c = normalize(w_c + R_c - mean_k R_k)``, the mean taken over the classes at hand, in training
and at test.

Self-regulating consistency (eq. 5 to 7): ``CE + 25 L1(w^, w) + 10 L1(f~, f) + (KL(p || q) +
KL(q || p)) / 2`` against the frozen CLIP's text features (averaged over 60 templates), image
features and class distribution.

Where the paper is silent or contradicts itself, these choices are ours:

* the place of the first text prompt (config key ``TEXT_PROMPT``). The paper's text says that
  learned vectors replace the template's words (``replace``), its eq. 4 writes them in front of the
  words (``before``). ``added``, the words' embeddings plus ``U V``, is what this toolbox did before
  version 0.2;
* reductions: L1 is a mean over entries, each KL is divided by images x classes (PromptSRC's code);
* batch size, learning rate schedule and warm-up (PromptSRC's), in the config files.

PromptSRC's Gaussian prompt aggregation is not part of this method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from adaptation.learner import Prediction, PromptLearner, Steps
from adaptation.losses import consistency_terms
from adaptation.starts import check_depth, check_least, context_init, normal_parameter, require_vit
from adaptation.trainer import PromptTrainer
from clip.changes import LayerChanges, deep_prompts
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability

#: where the first text prompt stands: in place of the template's words, in front of them, or added
#: to their embeddings
TEXT_PROMPTS = ("replace", "before", "added")
#: Kullback-Leibler divergence in both directions (the paper's), or from the frozen model only
LOGIT_LOSSES = ("symmetric", "one-way")


class LowRankPromptLearner(PromptLearner):
    """Deep prompts of both encoders as products of low-rank factors.

    Args:
        depth: prompted blocks ``J``, the input layer included.
        n_ctx: prompt tokens ``n`` per block and encoder.
        text_width, vision_width: widths of the two transformers.
        rank: rank ``r``; 0 learns full prompts without factors, which start as IVLP's do.
        shared_up: whether both modalities share one ``U`` per block.
        init_std: standard deviation that every factor starts with.
        words: ``(n, d_text)`` added to the first text prompt, or ``None``.
        start: ``(n, d_text)`` that a full first text prompt starts from, or ``None``.
        template: frozen words around the class name.
        drift_correction: whether to correct text features for their common drift.
    """

    words: Tensor | None

    def __init__(
        self,
        depth: int,
        n_ctx: int,
        text_width: int,
        vision_width: int,
        rank: int = 1,
        shared_up: bool = True,
        init_std: float = 0.05,
        words: Tensor | None = None,
        start: Tensor | None = None,
        template: str = "{}.",
        drift_correction: bool = True,
    ) -> None:
        super().__init__()
        self.template, self.drift_correction = template, drift_correction
        self.register_buffer("words", words, persistent=False)
        if rank == 0:
            self.text = normal_parameter(depth, n_ctx, text_width)
            self.vision = normal_parameter(depth, n_ctx, vision_width)
            self.up = self.up_vision = None
            if start is not None:
                self.text.data[0] = start
            return
        self.up = normal_parameter(depth, n_ctx, rank, std=init_std)
        self.up_vision = None if shared_up else normal_parameter(depth, n_ctx, rank, std=init_std)
        self.text = normal_parameter(depth, rank, text_width, std=init_std)
        self.vision = normal_parameter(depth, rank, vision_width, std=init_std)

    def text_changes(self) -> LayerChanges:
        text = self.text if self.up is None else self.up @ self.text  # (depth, n_ctx, text_width)
        prompts = list(text.unbind())
        if self.words is not None:
            prompts[0] = prompts[0] + self.words
        return deep_prompts(prompts, at=1)

    def image_changes(self) -> LayerChanges:
        up = self.up if self.up_vision is None else self.up_vision
        vision = self.vision if up is None else up @ self.vision  # (depth, n_ctx, vision_width)
        return deep_prompts(vision.unbind())

    def token_factors(self) -> dict[str, Tensor]:
        if self.up is None:
            return {}
        if self.up_vision is None:
            return {"U": self.up}
        return {"U of text": self.up, "U of images": self.up_vision}

    def text_features(self, clip: Steps) -> Tensor:
        text = super().text_features(clip)
        return correct_drift(text, clip.frozen_text_features()) if self.drift_correction else text


def correct_drift(text: Tensor, frozen: Tensor) -> Tensor:
    """Subtract from text features the mean of their drift from the frozen ones (eq. 8).

    Args:
        text: ``(C, embed_dim)`` prompted features of the classes at hand, unit norm.
        frozen: the frozen CLIP's features, of the same shape.

    Returns:
        features of the same shape, unit norm.
    """
    drift = (text - frozen).mean(dim=0, keepdim=True)
    return F.normalize(text - drift, dim=-1)


@TRAINER_REGISTRY.register()
class MMLoP(PromptTrainer):
    """Multi-modal low-rank prompting."""

    node = "MMLOP"
    bound_settings = ("TEXT_PROMPT",)

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MMLOP = node = CfgNode()
        #: prompt tokens per block, the same in both encoders
        node.N_CTX = 4
        #: prompted blocks, input layer included
        node.PROMPT_DEPTH = 9
        #: low-rank factors; False learns full prompts (independent vision-language prompting)
        node.LOW_RANK = True
        #: rank of the factors
        node.RANK = 1
        #: one U for both encoders; False gives each its own
        node.SHARED_U = True
        #: first text prompt: U V in place of the words of CTX_INIT ("replace"), in front of them
        #: ("before"), or added to their embeddings ("added")
        node.TEXT_PROMPT = "replace"
        #: the template's words; full prompts start from them
        node.CTX_INIT = "a photo of a"
        #: consistency with the frozen CLIP; False trains on cross-entropy alone
        node.CONSISTENCY = True
        #: weight of the L1 distance to the frozen text features
        node.TEXT_LOSS_WEIGHT = 25.0
        #: weight of the L1 distance to the frozen image features
        node.IMAGE_LOSS_WEIGHT = 10.0
        #: weight of the divergence from the frozen class distribution
        node.LOGIT_LOSS_WEIGHT = 1.0
        #: that divergence: "symmetric", or "one-way" as PromptSRC's
        node.LOGIT_LOSS = "symmetric"
        #: uniform drift correction of the text features
        node.DRIFT_CORRECTION = True
        #: standard deviation that every factor starts with
        node.INIT_STD = 0.05
        node.PREC = "fp16"

        start = "every factor starts with TRAINER.MMLOP.INIT_STD, as in the paper"
        cfg.register_renamed_key("TRAINER.MMLOP.INIT_STD_U", "TRAINER.MMLOP.INIT_STD", start)
        cfg.register_renamed_key("TRAINER.MMLOP.LR_MULT_U", "OPTIM.LR", "the rate of both factors")

    @classmethod
    def update_settings(cls, settings: dict[str, Any]) -> None:
        if "TEXT_PROMPT" not in settings:  # written before version 0.2
            for key in ("INIT_STD_U", "LR_MULT_U"):
                settings.pop(key, None)
            settings["TEXT_PROMPT"] = "added" if settings.get("CTX_INIT") else "replace"
            settings["LOGIT_LOSS"] = "one-way"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, name = cfg.TRAINER.MMLOP, "TRAINER.MMLOP"
        check_least(node, name, 1, "RANK", "N_CTX")
        check_least(node, name, 0, "TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "LOGIT_LOSS_WEIGHT")
        if node.INIT_STD <= 0:
            raise ValueError(f"TRAINER.MMLOP.INIT_STD is {node.INIT_STD}: use a positive number")
        for key, choices in (("TEXT_PROMPT", TEXT_PROMPTS), ("LOGIT_LOSS", LOGIT_LOSSES)):
            check_availability(node[key], choices, f"{name}.{key}")
        if node.TEXT_PROMPT != "replace" and not node.CTX_INIT.replace("_", " ").split():
            raise ValueError(
                f"TRAINER.MMLOP.TEXT_PROMPT is {node.TEXT_PROMPT!r} and CTX_INIT has no words: "
                "write some, or use 'replace'"
            )

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> LowRankPromptLearner:
        node, widths = cfg.TRAINER[cls.node], require_vit(clip, "MMLoP")
        check_depth(node.PROMPT_DEPTH, widths.layers, "TRAINER.MMLOP.PROMPT_DEPTH")
        words = start = None
        template = "{}."
        if node.TEXT_PROMPT == "before":
            template = f"{' '.join(node.CTX_INIT.replace('_', ' ').split())} {{}}."
        elif node.TEXT_PROMPT == "added":
            words, template = context_init(clip, node.CTX_INIT, node.N_CTX)
        elif not node.LOW_RANK:
            start, template = context_init(clip, node.CTX_INIT, node.N_CTX)
        return LowRankPromptLearner(
            depth=node.PROMPT_DEPTH,
            n_ctx=node.N_CTX,
            text_width=widths.text,
            vision_width=widths.vision,
            rank=node.RANK if node.LOW_RANK else 0,
            shared_up=node.SHARED_U,
            init_std=node.INIT_STD,
            words=words,
            start=start,
            template=template,
            drift_correction=node.DRIFT_CORRECTION,
        )

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ce, node = F.cross_entropy(prediction.logits, label), self.node_cfg
        if not node.CONSISTENCY:
            return ce, {}
        weights = (node.TEXT_LOSS_WEIGHT, node.IMAGE_LOSS_WEIGHT, node.LOGIT_LOSS_WEIGHT)
        symmetric = node.LOGIT_LOSS == "symmetric"
        terms = consistency_terms(prediction, prediction.frozen(), weights, symmetric)
        return ce + sum(terms.values()), {"ce": ce, **terms}
