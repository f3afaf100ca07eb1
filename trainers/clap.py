"""ZS-LP and CLAP: a prototype for each class, which starts as its zero-shot text features.

Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models",
CVPR 2024, arXiv 2312.12730; code: jusiro/CLAP. Prototypes start as CLIP's raw text features. ZS-LP
trains them with cross-entropy alone. CLAP keeps them near their start: the squared distance of a
class's prototype is weighted with the probability that zero-shot CLIP gives, on average over the
training views, to the true class.

As in its code: raw features are averaged over the texts, eight on ImageNet and elsewhere the data
set's own, with the underscores of class names left in; prototypes are brought to unit norm where
they classify and nowhere else, also not in the distance, which is a sum over features and a mean
over classes; 20 views of each image are encoded once, and an epoch takes as many batches out of all
of them as the images themselves fill (one at least, the last images left over); no validation
images. ``CONSTRAINT`` has what the code has besides the published setting. Departures: the paper's
multipliers are learned, which is ``l2-adaptative`` here and there (its first update does nothing);
every ``PREC`` works (there: fp16 alone on a GPU); INIT and ENHANCED_BASE are left out (of the
former only the zero-shot start is of these methods, the latter stops with an error); the run tests
its last prototypes (there: after every step, and the last number counts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.features import FeatureLearner, FeaturePool, FeatureTrainer, PoolLoader
from adaptation.learner import Prediction, Steps
from adaptation.learners import BaseFeaturesLearner
from adaptation.starts import check_least
from adaptation.templates import classifier_templates
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from support.hints import nearest

#: words of CONSTRAINT: a distance, and how multipliers are made
DISTANCES = ("l2", "cosine")
MULTIPLIERS = ("balanced", "corrected", "constant", "adaptative")

#: zero-shot logits that are computed at a time
AT_ONCE = 2**24


class PrototypeLearner(BaseFeaturesLearner, FeatureLearner):
    """Prototypes ``(C, embed_dim)`` of the classes, which start as the base features."""

    class_rows = ("base_text_features", "prototypes")

    def __init__(self, n_classes: int, embed_dim: int) -> None:
        super().__init__(n_classes, embed_dim)
        self.prototypes = nn.Parameter(self.base_text_features.clone())

    def start(self, clip: Steps) -> None:
        super().start(clip)
        self.prototypes.data.copy_(self.base_text_features)

    def text_features(self, clip: Steps) -> Tensor:
        return F.normalize(self.prototypes, dim=-1)

    def classify(self, clip: Steps, raw: Tensor) -> Prediction:
        features, text = F.normalize(raw, dim=-1), clip.text_features()
        return Prediction(features, text, clip.logits(features, text))


def in_random_order(n: int) -> Tensor:
    """Draw an order of ``n`` features as the published code does, from NumPy's generator."""
    return torch.from_numpy(np.random.rand(n).argsort())


@TRAINER_REGISTRY.register()
class ZSLP(FeatureTrainer):
    """Linear probe from the zero-shot classifier."""

    node = "ZSLP"
    model_name = "adapter"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.ZSLP = node = CfgNode()
        #: views of each training image
        node.PASSES = 20
        #: leave underscores in class names
        node.KEEP_UNDERSCORES = True
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_least(cfg.TRAINER[self.node], f"TRAINER.{self.node}", 1, "PASSES")

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> PrototypeLearner:
        learner = PrototypeLearner(len(classnames), clip.text_projection.shape[1])
        learner.keep_underscores = cfg.TRAINER[cls.node].KEEP_UNDERSCORES
        return learner

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        return classifier_templates(cfg.DATASET.NAME)

    def passes(self) -> int:
        return self.node_cfg.PASSES

    def steps_per_epoch(self) -> int:
        n_images = len(self.dm.dataset.train_x)
        return max(1, n_images // self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)

    def epoch_loader(self) -> PoolLoader:
        size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        return PoolLoader(*self.pool.flat(), size, self.steps_per_epoch(), in_random_order)


def distances(kind: str, prototypes: Tensor, base: Tensor) -> Tensor:
    """Return how far each class's prototype is from its base, ``(C,)``.

    Args:
        kind: one of ``DISTANCES``.
        prototypes, base: ``(C, embed_dim)``.
    """
    if kind == "cosine":
        return 1 - F.cosine_similarity(prototypes, base, dim=-1)
    return (prototypes - base).pow(2).sum(dim=-1)


def start_multipliers(
    words: Sequence[str], right: Tensor, labels: Tensor, n_classes: int
) -> Tensor:
    """Return the weight of each class's distance, ``(C,)``.

    Args:
        words: those of CONSTRAINT.
        right: ``(M,)`` zero-shot probabilities of the true classes of the training views.
        labels: ``(M,)`` these classes.
        n_classes: number of classes, C.
    """
    sums, counts = torch.zeros(2, n_classes, device=right.device)
    sums = sums.index_add(0, labels, right)
    counts = counts.index_add(0, labels, torch.ones_like(right))
    multipliers = sums / counts.clamp_min(1)  # a class without an image has no weight
    if "balanced" in words:
        multipliers = torch.ones_like(multipliers)
    if "corrected" in words:
        multipliers = multipliers * len(multipliers) / multipliers.sum()
    if "constant" in words:
        multipliers = torch.full_like(multipliers, float(multipliers.mean()))
    return multipliers


@TRAINER_REGISTRY.register()
class CLAP(ZSLP):
    """Class-adaptive linear probe."""

    node = "CLAP"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.CLAP = node = CfgNode()
        #: l2 or cosine, and with hyphens between any of balanced, corrected, constant, adaptative
        node.CONSTRAINT = "l2"
        #: views of each training image
        node.PASSES = 20
        #: leave underscores in class names
        node.KEEP_UNDERSCORES = True
        node.PREC = "fp16"

    def __init__(self, cfg: CfgNode) -> None:
        #: weights of the distances, and the distances at the last update of them, both (C,); they
        #: keep their place in memory, where captured steps read them
        self.multipliers, self.rate = torch.empty(2, 0)
        super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        value = cfg.TRAINER.CLAP.CONSTRAINT
        words, known = value.split("-"), (*DISTANCES, *MULTIPLIERS)
        wrong = [word for word in words if word not in known]
        if wrong or len([word for word in words if word in DISTANCES]) != 1:
            hint = "; ZSLP is the method without a constraint" if value == "none" else ""
            raise ValueError(
                f"TRAINER.CLAP.CONSTRAINT is {value!r}: use one of {', '.join(DISTANCES)}, and "
                f"with hyphens any of {', '.join(MULTIPLIERS)}"
                f"{nearest(wrong[0], known) if wrong else ''}{hint}"
            )

    @property
    def words(self) -> list[str]:
        """Words of CONSTRAINT."""
        return self.node_cfg.CONSTRAINT.split("-")

    @torch.no_grad()
    def take_pool(self, pool: FeaturePool) -> None:
        if not len(self.multipliers):  # a run that goes on has them
            features, labels = pool.flat()
            text = F.normalize(self.model.learner.get_buffer("base_text_features"), dim=-1)
            right = []
            size = max(1, AT_ONCE // len(text))
            for part, label in zip(features.split(size), labels.split(size), strict=True):
                logits = self.model.logits(F.normalize(part, dim=-1), text)
                right.append(logits.softmax(dim=-1).gather(1, label[:, None]).squeeze(1))
            self.multipliers = start_multipliers(self.words, torch.cat(right), labels, len(text))
            self.rate = torch.zeros_like(self.multipliers)

    def distances(self) -> Tensor:
        """Return how far the prototypes are from the base, ``(C,)``."""
        kind = next(word for word in self.words if word in DISTANCES)
        learner: Any = self.model.learner
        return distances(kind, learner.prototypes, learner.base_text_features)

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ce = F.cross_entropy(prediction.logits, label)
        constraint = (self.multipliers * self.distances()).mean()
        return ce + constraint, {"ce": ce, "constraint": constraint}

    def after_epoch(self) -> None:
        if "adaptative" in self.words:
            self.update_multipliers()
        super().after_epoch()

    @torch.no_grad()
    def update_multipliers(self) -> None:
        """Add the distances to the multipliers, times those of the update before."""
        now = self.distances()
        self.multipliers.add_(self.rate * now).clamp_(min=0)
        self.rate.copy_(now)

    def trainer_state(self) -> dict[str, Any]:
        own = {"multipliers": self.multipliers.clone(), "rate": self.rate.clone()}
        return {**super().trainer_state(), **own}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        super().load_trainer_state(state)
        self.multipliers = state["multipliers"].to(self.device)
        self.rate = state["rate"].to(self.device)
