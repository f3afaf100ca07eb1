"""MMLoP: multi-modal low-rank prompting.

Ghiasvand, Ehsani Oskouie, Alizadeh, Pedarsani, "Multi-Modal Low-Rank Prompting for Efficient
Vision-Language Adaptation", arXiv 2602.21397 (ECCV 2026).

Both encoders get ``n`` prompt tokens at the input of each of their first ``J`` blocks. The prompts
of block ``l`` are products of low-rank factors, with one factor shared by the modalities:

    P_text[l] = U[l] V_text[l],    P_vision[l] = U[l] V_vision[l],

``U[l]`` of shape (n, r), ``V_text[l]`` (r, d_text), ``V_vision[l]`` (r, d_vision): in all
``J (n r + r (d_text + d_vision))`` trained numbers, 11 556 on ViT-B/16 with J = 9, n = 4, r = 1.

Uniform drift correction: with ``w_c`` the frozen and ``w~_c`` the prompted unit-norm text feature
of class ``c``, and ``R_c = w~_c - w_c``, the classifier uses
``w^_c = normalize(w_c + R_c - mean_k R_k)``, the mean taken over the classes at hand, in training
and at test.

Self-regulating consistency: ``CE + a_t L1(w^, w) + a_v L1(f~, f) + a_l KL(q || q~)`` against the
frozen CLIP's text features (averaged over 60 templates), image features and class distribution.

Where the paper leaves a choice open, ours is a config key: number of tokens (4, after PromptSRC's
baseline), loss weights and reductions (PromptSRC's), the hand-written words under the first text
prompt, and the initial scale of the factors with the clipping of gradients (docs/mmlop_stability.md
has the study behind the defaults). Gaussian prompt aggregation is PromptSRC's and not part of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.model import CLIP
from clip.prompting import LayerPrompts, deep_prompts
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer
from .learner import PromptLearner, check_depth, clip_widths, context_init, require_vit
from .losses import consistency_terms
from .prompted_clip import Prediction


class LowRankPromptLearner(PromptLearner):
    """Deep prompts of both encoders as products of low-rank factors.

    Args:
        depth: prompted blocks ``J``, the input layer included.
        n_ctx: prompt tokens ``n`` per block and encoder.
        text_width, vision_width: of the two transformers.
        rank: ``r``; 0 learns full prompts without factors.
        shared_up: one ``U`` per block for both modalities, or one for each.
        init_std: standard deviation that an entry of a prompt starts with.
        init_std_up: that of ``U``; 0 gives both factors the same one. ``V`` follows from it.
        ctx_init: ``(n, d_text)`` added to the first text prompt, or ``None``.
        template: frozen words around the class name.
        drift_correction: whether text features are corrected for their common drift.
    """

    def __init__(
        self,
        depth: int,
        n_ctx: int,
        text_width: int,
        vision_width: int,
        rank: int = 1,
        shared_up: bool = True,
        init_std: float = 0.02,
        init_std_up: float = 0.0,
        ctx_init: Tensor | None = None,
        template: str = "{}.",
        drift_correction: bool = True,
    ) -> None:
        super().__init__()
        self.template, self.drift_correction = template, drift_correction
        self.register_buffer("ctx_init", ctx_init, persistent=False)

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).normal_(std=std))

        if rank == 0:
            self.text = normal(depth, n_ctx, text_width, std=init_std)
            self.vision = normal(depth, n_ctx, vision_width, std=init_std)
            self.up = self.up_vision = None
            return
        # an entry of U V sums r products: its deviation is sqrt(r) std(U) std(V)
        std_up = init_std_up or (init_std / rank**0.5) ** 0.5
        std_down = init_std / (rank**0.5 * std_up)
        self.up = normal(depth, n_ctx, rank, std=std_up)
        self.up_vision = None if shared_up else normal(depth, n_ctx, rank, std=std_up)
        self.text = normal(depth, rank, text_width, std=std_down)
        self.vision = normal(depth, rank, vision_width, std=std_down)

    def text_prompts(self) -> LayerPrompts:
        prompts = list((self.text if self.up is None else self.up @ self.text).unbind())
        if self.ctx_init is not None:
            prompts[0] = prompts[0] + self.ctx_init
        return deep_prompts(prompts, at=1)

    def image_prompts(self) -> LayerPrompts:
        up = self.up if self.up_vision is None else self.up_vision
        return deep_prompts((self.vision if up is None else up @ self.vision).unbind())

    def correct_text(self, text: Tensor, frozen_text: Callable[[], Tensor]) -> Tensor:
        """Uniform drift correction over the classes at hand."""
        if not self.drift_correction:
            return text
        drift = (text - frozen_text()).mean(dim=0, keepdim=True)
        return F.normalize(text - drift, dim=-1)


@TRAINER_REGISTRY.register()
class MMLoP(PromptTrainer):
    """Multi-modal low-rank prompting."""

    node = "MMLOP"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MMLOP = node = CfgNode()
        #: prompt tokens per block, the same in both encoders
        node.N_CTX = 4
        #: prompted blocks, input layer included
        node.PROMPT_DEPTH = 9
        #: low-rank factors; False learns full prompts (independent vision-language prompting)
        node.LOW_RANK = True
        node.RANK = 1
        #: one U for both encoders; False gives each its own
        node.SHARED_U = True
        #: words whose embeddings lie under the first text prompt; "" for pure U V
        node.CTX_INIT = "a photo of a"
        #: consistency with the frozen CLIP; False trains on cross-entropy alone
        node.CONSISTENCY = True
        node.TEXT_LOSS_WEIGHT = 25.0
        node.IMAGE_LOSS_WEIGHT = 10.0
        node.LOGIT_LOSS_WEIGHT = 1.0
        node.DRIFT_CORRECTION = True
        #: standard deviation of a prompt entry at the start
        node.INIT_STD = 0.02
        #: that of U; 0 gives U and V the same one. With 1 the gradient norm wants clipping
        #: (OPTIM.CLIP_GRAD_NORM 1 in the shipped files; docs/mmlop_stability.md)
        node.INIT_STD_U = 1.0
        #: learning rate of U relative to OPTIM.LR
        node.LR_MULT_U = 1.0
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = cfg.TRAINER.MMLOP
        for key in ("RANK", "N_CTX"):
            if node[key] < 1:
                raise ValueError(f"TRAINER.MMLOP.{key} is {node[key]}: use 1 or more")
        for key in ("INIT_STD", "LR_MULT_U"):
            if node[key] <= 0:
                raise ValueError(f"TRAINER.MMLOP.{key} is {node[key]}: use a positive number")
        if node.INIT_STD_U < 0:
            raise ValueError(f"TRAINER.MMLOP.INIT_STD_U is {node.INIT_STD_U}: use 0 or more")

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> LowRankPromptLearner:
        cfg, widths = cfg.TRAINER[cls.node], clip_widths(clip)
        require_vit(widths, "MMLoP")
        n_blocks = min(widths.text_layers, widths.vision_layers)
        check_depth(cfg.PROMPT_DEPTH, n_blocks, "TRAINER.MMLOP.PROMPT_DEPTH")
        ctx_init, template = context_init(clip, cfg.CTX_INIT, cfg.N_CTX)
        return LowRankPromptLearner(
            depth=cfg.PROMPT_DEPTH,
            n_ctx=cfg.N_CTX,
            text_width=widths.text,
            vision_width=widths.vision,
            rank=cfg.RANK if cfg.LOW_RANK else 0,
            shared_up=cfg.SHARED_U,
            init_std=cfg.INIT_STD,
            init_std_up=cfg.INIT_STD_U,
            ctx_init=ctx_init,
            template=template,
            drift_correction=cfg.DRIFT_CORRECTION,
        )

    def param_groups(self, learner: LowRankPromptLearner) -> list[dict[str, Any]] | None:
        if self.node_cfg.LR_MULT_U == 1.0:
            return None
        up = [p for p in (learner.up, learner.up_vision) if p is not None]
        lr = self.cfg.OPTIM.LR
        return [
            {"params": [learner.text, learner.vision], "lr": lr},
            {"params": up, "lr": lr * self.node_cfg.LR_MULT_U},
        ]

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ce = F.cross_entropy(prediction.logits, label)
        if not self.node_cfg.CONSISTENCY:
            return ce, {}
        terms = consistency_terms(
            prediction,
            self.model.predict_frozen(prediction.image, prediction.views),
            text=self.node_cfg.TEXT_LOSS_WEIGHT,
            image=self.node_cfg.IMAGE_LOSS_WEIGHT,
            logits=self.node_cfg.LOGIT_LOSS_WEIGHT,
        )
        return ce + sum(terms.values()), {"ce": ce, **terms}
