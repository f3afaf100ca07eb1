"""PromptSRC: self-regulating prompts.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV
2023, arXiv 2307.06948. Independent prompts in both encoders, kept near the frozen CLIP by three
consistency terms, and averaged over the epochs with Gaussian weights.

As in its code: the first text prompt starts from the first N_CTX_TEXT tokens of CTX_INIT (all four
words of "a photo of a" in the shipped files, "a photo" with two); the divergence of the class
distributions is divided by images x classes; the frozen text features are averages of raw features
over 60 templates. Departures: only the prompts are averaged (there: all weights of CLIP, too, which
rounds them), and a resumed run goes on with its average (there: it starts again); GPA_MEAN and
GPA_STD may be fractions (there: integers only); every precision works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.learner import Prediction
from adaptation.learners import DeepPromptLearner, build_deep_prompts
from adaptation.losses import consistency_terms
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


def gaussian_weights(n_epochs: int, mean: float, std: float) -> list[float]:
    """Return weights of epochs 1 to ``n_epochs``: a normal density at the epoch number, sum 1.

    Raises:
        ValueError: the density is zero at every epoch.
    """
    density = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, n_epochs + 1)]
    total = sum(density)
    if total == 0.0:
        raise ValueError(
            f"GPA_MEAN {mean} with GPA_STD {std} gives no weight to any of {n_epochs} epochs"
        )
    return [value / total for value in density]


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """Self-regulating prompts."""

    node = "PROMPTSRC"
    model_name = "VLPromptLearner"
    extends = False  # the average is over the epochs that the run was begun with

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.PROMPTSRC = node = CfgNode()
        #: image prompt tokens per block
        node.N_CTX_VISION = 4
        #: text prompt tokens per block
        node.N_CTX_TEXT = 4
        #: words that the first text prompt starts from
        node.CTX_INIT = "a photo of a"
        node.PREC = "fp16"
        #: prompted blocks of the image encoder, input layer included
        node.PROMPT_DEPTH_VISION = 9
        #: prompted blocks of the text encoder, input layer included
        node.PROMPT_DEPTH_TEXT = 9
        #: weight of the L1 distance to the frozen text features
        node.TEXT_LOSS_WEIGHT = 25.0
        #: weight of the L1 distance to the frozen image features
        node.IMAGE_LOSS_WEIGHT = 10.0
        #: centre, in epochs, of the Gaussian weights that the prompts are averaged with
        node.GPA_MEAN = 15.0
        #: width of these weights, in epochs
        node.GPA_STD = 1.0

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.PROMPTSRC.GPA_STD <= 0:
            raise ValueError(
                f"TRAINER.PROMPTSRC.GPA_STD is {cfg.TRAINER.PROMPTSRC.GPA_STD}: use more than 0"
            )

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> DeepPromptLearner:
        node = cfg.TRAINER[cls.node]
        return build_deep_prompts(
            clip,
            method="PromptSRC",
            node=cls.node,
            text=(node.N_CTX_TEXT, node.PROMPT_DEPTH_TEXT),
            vision=(node.N_CTX_VISION, node.PROMPT_DEPTH_VISION),
            ctx_init=node.CTX_INIT,
        )

    def build_model(self) -> None:
        super().build_model()
        node = self.node_cfg
        self.epoch_weights = gaussian_weights(
            self.cfg.OPTIM.MAX_EPOCH, mean=float(node.GPA_MEAN), std=float(node.GPA_STD)
        )
        self.average = {
            name: torch.zeros_like(value) for name, value in self.model.learner.state_dict().items()
        }

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ce = F.cross_entropy(prediction.logits, label)
        weights = (self.node_cfg.TEXT_LOSS_WEIGHT, self.node_cfg.IMAGE_LOSS_WEIGHT, 1.0)
        terms = consistency_terms(prediction, prediction.frozen(), weights)
        return ce + sum(terms.values()), {"ce": ce, **terms}

    def after_epoch(self) -> None:
        """Add the epoch's prompts to the average; after the last epoch, load the average."""
        for name, value in self.model.learner.state_dict().items():
            self.average[name] += self.epoch_weights[self.epoch] * value
        if self.epoch + 1 == len(self.epoch_weights):
            self.model.learner.load_state_dict(self.average)
        super().after_epoch()

    def trainer_state(self) -> dict[str, Any]:
        return {**super().trainer_state(), "average": self.average}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        super().load_trainer_state(state)
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
