"""What MMRL and MMRL++ share: tokens of a learned space in the upper blocks of both encoders.

A few "space tokens" are mapped linearly into either encoder, anew for every listed layer. They
enter behind the first token of the sequence. The image encoder's last block then gives two kinds of
features: that of the class token, through CLIP's projection, and the mean of the inserted rows,
through a second, learned one. MMRL (arXiv 2503.08497), MMRL++ (arXiv 2505.10088).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from clip.changes import LayerChanges, Prompt
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.utils import check_availability, check_range

from .learner import Prediction, PromptLearner, Steps
from .losses import cosine_distance
from .starts import Widths, check_depth, check_least, require_vit
from .templates import dataset_template
from .trainer import PromptTrainer

#: factor of the cosine similarities: a constant of the published code, whatever CLIP's own is
SCALE = 100.0
#: values of FEATURES
CHOICES = ("auto", "both", "class")
#: layers of the published files
LAYERS = tuple(range(6, 13))


@dataclass(frozen=True)
class TwoFoldPrediction(Prediction):
    """Prediction by two kinds of image features.

    Attributes:
        class_logits: ``(B, C)`` of the class token's features, which are ``image_features``.
        row_logits: ``(B, C)`` of the features of the inserted rows.
    """

    class_logits: Tensor = field(kw_only=True)
    row_logits: Tensor = field(kw_only=True)


class RepresentationLearner(PromptLearner):
    """Space tokens, their maps into both encoders, and a second projection of image features.

    Args:
        tokens: ``(n, r)`` start values of the space tokens.
        to_text, to_image: map ``(n, r)`` to the tokens of every listed layer, ``L`` tensors
            ``(n, d_text)`` and ``(n, d_vision)``.
        layers: the ``L`` listed layers, ascending, counted from 1.
        alpha: share of the class token's features, 0 to 1; the rest is the inserted rows'.
        fresh: share of new tokens where they meet those of the layers before, 0 to 1.
        features: of evaluation: ``both``, the ``class`` token's alone, or ``auto``, both for the
            classes of the training and the class token's for others.
        template: text around the class name.
    """

    logit_scale = SCALE
    #: starts of published names, and of ours for the same
    renamed: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        tokens: Tensor,
        to_text: nn.Module,
        to_image: nn.Module,
        layers: Sequence[int],
        alpha: float,
        fresh: float,
        features: str,
        template: str,
    ) -> None:
        super().__init__()
        self.tokens, self.to_text, self.to_image = nn.Parameter(tokens), to_text, to_image
        self.layers, self.alpha, self.fresh = tuple(layers), alpha, fresh
        self.features, self.template = features, template

    def _changes(self, tokens: Sequence[Tensor]) -> LayerChanges:
        n = len(self.tokens)
        changes: dict[int, Prompt] = {}
        for layer, each in zip(self.layers, tokens, strict=True):
            if not changes:
                changes[layer - 1] = Prompt(each, at=1, embedded=True)
            else:
                changes[layer - 1] = Prompt(each, at=1, drop=n, keep=1 - self.fresh)
        return changes

    def text_changes(self) -> LayerChanges:
        return self._changes(self.to_text(self.tokens))

    def image_changes(self) -> LayerChanges:
        return self._changes(self.to_image(self.tokens))

    def project_rows(self, clip: Steps, rows: Tensor) -> Tensor:
        """Project means of inserted rows, ``(B, d_vision)``, to ``(B, embed_dim)``."""
        raise NotImplementedError

    def forward(self, clip: Steps, image: Tensor) -> TwoFoldPrediction:
        n_rows = 1 + len(self.tokens)
        rows = clip.encode_image(image, self.image_changes(), n_rows)  # (B, 1 + n, d_vision)
        features = F.normalize(clip.project_image(rows[:, 0]), dim=-1)
        of_rows = F.normalize(self.project_rows(clip, rows[:, 1:].mean(dim=1)), dim=-1)
        text = clip.text_features()
        class_logits, row_logits = clip.logits(features, text), clip.logits(of_rows, text)
        both = self.features == "both" or (self.features == "auto" and clip.seen_classes)
        mixed = self.alpha * class_logits + (1 - self.alpha) * row_logits
        return TwoFoldPrediction(
            features,
            text,
            mixed if both or self.training else class_logits,
            class_logits=class_logits,
            row_logits=row_logits,
        )

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {_replaced(key, self.renamed): value for key, value in weights.items()}

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        theirs = [(ours, name) for name, ours in self.renamed]
        return {_replaced(key, theirs): value for key, value in weights.items()}


def _replaced(key: str, starts: Sequence[tuple[str, str]]) -> str:
    for start, other in starts:
        if key.startswith(start):
            return other + key.removeprefix(start)
    return key


class RepresentationTrainer(PromptTrainer):
    """Base of both methods: their keys, checks, teacher and loss."""

    model_name = "MultiModalRepresentationLearner"
    bound_settings = ("REP_LAYERS",)

    @staticmethod
    def shared_keys() -> CfgNode:
        """Return a config node with the keys that both methods have."""
        node = CfgNode()
        #: share of the class token's features in loss and logits, 0 to 1; the rest is that of the
        #: inserted rows'
        node.ALPHA = 0.7
        #: weight of the distance to the frozen features
        node.REG_WEIGHT = 1.0
        #: layers that get tokens, in both encoders, counted from 1
        node.REP_LAYERS = list(LAYERS)
        #: width of the space tokens
        node.REP_DIM = 512
        #: number of space tokens
        node.N_REP_TOKENS = 5
        #: features that classify in evaluation: both, class (the class token's), or auto (both for
        #: the classes and the data set of the training, class for others)
        node.FEATURES = "auto"
        node.PREC = "amp"
        return node

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, name = cfg.TRAINER[self.node], f"TRAINER.{self.node}"
        check_availability(node.FEATURES, CHOICES, f"{name}.FEATURES")
        check_range(node, name, 0, 1, "ALPHA", "BETA")
        check_least(node, name, 1, "REP_DIM", "N_REP_TOKENS", "PROJ_LORA_DIM", "RES_LORA_DIM")
        layers: Any = node.REP_LAYERS
        whole = bool(layers) and all(type(layer) is int for layer in layers)
        if not whole or sorted(set(layers)) != list(layers):
            raise ValueError(
                f"{name}.REP_LAYERS is {layers!r}: list layers from 1 on, each once, in order, as "
                "in [6,7,8]"
            )

    @classmethod
    def checked_widths(cls, cfg: CfgNode, clip: CLIP) -> Widths:
        """Return the sizes of a CLIP after a check that it has the listed layers.

        Raises:
            ValueError: it has no vision transformer, or fewer layers.
        """
        widths = require_vit(clip, cfg.TRAINER.NAME)
        for layer in cfg.TRAINER[cls.node].REP_LAYERS:
            check_depth(layer, widths.layers, f"a layer of TRAINER.{cls.node}.REP_LAYERS")
        return widths

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        return (dataset_template(cfg.DATASET.NAME),)

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(prediction, TwoFoldPrediction)
        node, frozen = self.node_cfg, prediction.frozen()
        terms = {
            "ce": F.cross_entropy(prediction.class_logits, label),
            "ce_rows": F.cross_entropy(prediction.row_logits, label),
            "image": cosine_distance(prediction.image_features, frozen.image_features),
            "text": cosine_distance(prediction.text_features, frozen.text_features),
        }
        ce = node.ALPHA * terms["ce"] + (1 - node.ALPHA) * terms["ce_rows"]
        return ce + node.REG_WEIGHT * (terms["image"] + terms["text"]), terms
