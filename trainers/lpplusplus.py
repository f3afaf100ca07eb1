"""LP++: a linear probe whose class weights are blended with CLIP's text features.

Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, arXiv
2404.02285; code: FereshteShakeri/FewShot-CLIP-Strong-Baseline.

With a unit feature ``f`` and text features ``t_k``, the logit of class ``k`` is
``f.(v_k + alpha_k t_k) + b_k``, without a temperature. Step sizes and start values follow from the
features of one view of every training image, and each step is on all of them.

As in the code, where it differs from the paper: there is a bias, with a random start; the step size
of alpha has its 4 in the denominator (a sixteenth of the counterpart of that of the weights); class
weights start at the sum, not the mean, of a class's features; alpha takes a step in every tenth
epoch only, along with the weights and along the sum of its gradients of all epochs so far
(``ACCUMULATE_ALPHA_GRAD False`` takes that of the epoch); the weights have momentum; and of the
epochs the last one with the best validation accuracy counts.

Departures: validation images are the data set's own, as many as there are shots; ImageNet has none
here, and its last epoch counts (there: further training images, under the random training views).
All but CLIP is float32 in every precision (there: half). A run is one draw of images at its seed
(there ten draws, six data sets always having the same images). The class count is that of the data
set (there the number of images over the shots, wrong with a short class). ImageNet-A and -R are
classified among their own 200 classes (there: among all 1000, so that accuracies on them do not
compare). The published code keeps no checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.features import FeatureLearner, FeaturePool, FeatureTrainer, PoolLoader
from adaptation.learner import Prediction, Steps
from adaptation.starts import check_least
from adaptation.templates import IMAGENET_TEMPLATES_SELECT, dataset_template
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class BlendedProbe(FeatureLearner):
    """Class weights, biases, and the weight of each class's text features.

    Args:
        n_classes: number of classes, C.
        embed_dim: width of the features.
        bias: whether there are biases.
    """

    class_specific = True
    class_rows = ("weight", "bias", "alpha", "text_weights")
    text_weights: Tensor

    def __init__(self, n_classes: int, embed_dim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_classes, embed_dim))
        self.bias = None
        if bias:
            bound = embed_dim**-0.5  # PyTorch's of a linear map
            self.bias = nn.Parameter(torch.empty(n_classes).uniform_(-bound, bound))
        self.alpha = nn.Parameter(torch.zeros(n_classes))
        self.register_buffer("text_weights", torch.zeros(n_classes, embed_dim))

    def start(self, clip: Steps) -> None:
        self.text_weights.copy_(F.normalize(clip.raw_text_features(unit=True), dim=-1))

    def text_features(self, clip: Steps) -> Tensor:
        return self.text_weights

    def classify(self, clip: Steps, raw: Tensor) -> Prediction:
        features = F.normalize(raw, dim=-1)
        logits = F.linear(features, self.weight, self.bias)
        logits = logits + self.alpha * (features @ self.text_weights.t())
        return Prediction(features, self.text_weights, logits)


@TRAINER_REGISTRY.register()
class LPPlusPlus(FeatureTrainer):
    """A linear probe, blended with the text features of each class."""

    node = "LPPP"
    later_on_ties = True
    #: sum of alpha's gradients so far
    alpha_gradient: Tensor

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.LPPP = node = CfgNode()
        #: alpha takes a step in every so many epochs
        node.ALPHA_EVERY = 10
        #: start of alpha over the mean similarity of images and their class's text
        node.ALPHA_INIT = 250.0
        #: alpha's step is along the sum of the gradients of all epochs; else of the present one
        node.ACCUMULATE_ALPHA_GRAD = True
        #: have biases
        node.BIAS = True
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_least(cfg.TRAINER[self.node], f"TRAINER.{self.node}", 1, "ALPHA_EVERY")
        if cfg.OPTIM.CUDA_GRAPH:
            raise ValueError(
                "OPTIM.CUDA_GRAPH captures one step, and LPPlusPlus has two kinds: set it to False"
            )

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> BlendedProbe:
        width = clip.text_projection.shape[1]
        return BlendedProbe(len(classnames), width, cfg.TRAINER[cls.node].BIAS)

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        name = cfg.DATASET.NAME
        return IMAGENET_TEMPLATES_SELECT if name == "ImageNet" else (dataset_template(name),)

    def param_groups(self, learner: BlendedProbe) -> list[dict[str, Any]]:
        weights = [learner.weight] + ([] if learner.bias is None else [learner.bias])
        return [{"params": weights}, {"params": [learner.alpha], "momentum": 0.0}]

    def build_model(self) -> None:
        super().build_model()
        self.alpha_gradient = torch.zeros_like(self.probe.alpha)

    @property
    def probe(self) -> BlendedProbe:
        learner = self.model.learner
        assert isinstance(learner, BlendedProbe)
        return learner

    @torch.no_grad()
    def start_from(self, pool: FeaturePool) -> None:
        """Set start values, and step sizes: those of the curvature, times OPTIM.LR."""
        features, labels = F.normalize(pool.features[0], dim=-1), pool.labels
        learner, n_images = self.probe, len(labels)
        of_class = F.one_hot(labels, len(learner.alpha)).to(features)  # (N, C)
        similarities = features @ learner.text_weights.t()  # (N, C)
        learner.weight.copy_(of_class.t() @ features)
        means = (of_class * similarities).sum(dim=0) / of_class.sum(dim=0)
        learner.alpha.fill_(self.node_cfg.ALPHA_INIT * means.double().mean())
        largest = torch.linalg.eigvalsh((features.t() @ features).double().cpu())[-1]
        rates = [
            4 * n_images / float(largest),
            n_images / (4 * float(similarities.square().sum(dim=0).max())),
        ]
        for number, (group, rate) in enumerate(zip(self.optim.param_groups, rates, strict=True)):
            group["lr"] *= rate
            group["initial_lr"] *= rate
            for schedule in filter(None, (self.sched, getattr(self.sched, "successor", None))):
                schedule.base_lrs[number] *= rate
                schedule._last_lr[number] *= rate

    def steps_per_epoch(self) -> int:
        return 1

    def epoch_loader(self) -> PoolLoader:
        return PoolLoader(*self.pool.flat(), batch_size=0)

    def update(self) -> None:
        alpha = self.probe.alpha
        assert alpha.grad is not None
        if self.node_cfg.ACCUMULATE_ALPHA_GRAD:
            self.alpha_gradient += alpha.grad
            alpha.grad.copy_(self.alpha_gradient)
        if (self.epoch + 1) % self.node_cfg.ALPHA_EVERY:
            alpha.grad = None  # the optimiser leaves it
        super().update()

    def trainer_state(self) -> dict[str, Any]:
        return {**super().trainer_state(), "alpha_gradient": self.alpha_gradient}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        super().load_trainer_state(state)
        self.alpha_gradient.copy_(state["alpha_gradient"])
