"""MMRL++: MMRL with shared maps, low-rank residuals, and tokens that take up those before them.

Guo and Gu, "MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning for
Vision-Language Models", IJCV 2026, arXiv 2505.10088; code: yunncheng/MMRL. Of every encoder one map
of the space tokens is shared by all listed layers, each of which adds a low-rank term and a bias of
its own; the second projection is CLIP's plus a low-rank term; a layer's tokens are BETA of the new
ones and 1 - BETA of what the block before made of the old ones.

As in its code: all that the docstring of ``trainers/mmrl.py`` says but for the second projection,
which starts as CLIP's; biases of one encoder start equal; no low-rank product has a factor. BETA
acts in tests as well, and the published cross-dataset results use one of each target's own for a
model trained with another, which is a choice by test data set: ``vit_b16_cross_datasets_own_beta``
repeats it, and ``vit_b16_cross_datasets`` tests all with that of the training. Departures: those of
MMRL; ``PREC`` fp16 works (there: it stops with an error). The code's own name of the method is
MMRLpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.learner import Steps
from adaptation.representations import RepresentationLearner, RepresentationTrainer
from adaptation.starts import normal_parameter
from adaptation.templates import dataset_template
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class LowRankProduct(nn.Module):
    """A product ``A B`` that starts at zero.

    Args:
        n_rows, n_columns: of the product.
        rank: columns of ``A``, which starts uniform within plus and minus 1 / sqrt(rank).
    """

    def __init__(self, n_rows: int, n_columns: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(n_rows, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.B = nn.Parameter(torch.zeros(rank, n_columns))

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply ``rows``, ``(..., n_rows)``, by the product: ``(..., n_columns)``."""
        return rows @ self.A @ self.B


class OwnResidual(LowRankProduct):
    """What one layer adds to the shared map: a low-rank term, and a bias.

    Args:
        bias: ``(width_out,)`` its start.
        width_in, rank: of the low-rank term.
    """

    def __init__(self, bias: Tensor, width_in: int, rank: int) -> None:
        super().__init__(len(bias), width_in, rank)
        self.bias = nn.Parameter(bias.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what it adds for ``tokens``, ``(n, width_in)``: ``(n, width_out)``."""
        return F.linear(F.linear(tokens, self.B), self.A, self.bias)


class SharedMaps(nn.Module):
    """One map for all listed layers, with a residual of each.

    Args:
        width_in, width_out: of the space tokens, and of the encoder.
        n_layers: number of listed layers.
        rank: of the residuals.
    """

    def __init__(self, width_in: int, width_out: int, n_layers: int, rank: int) -> None:
        super().__init__()
        start = nn.Linear(width_in, width_out)
        self.weight, bias = start.weight, start.bias.detach()
        self.srra = nn.ModuleList(OwnResidual(bias, width_in, rank) for _ in range(n_layers))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens ``(n, width_in)`` to a tensor ``(n, width_out)`` for every layer."""
        return [F.linear(tokens, self.weight) + own(tokens) for own in self.srra]


class MMRLPlusPlusLearner(RepresentationLearner):
    """Space tokens with shared maps, and CLIP's projection with a low-rank term for their rows.

    Args:
        tokens, to_text, to_image, settings: as for :class:`RepresentationLearner`.
        projection: the low-rank term, ``(d_vision, embed_dim)``.
    """

    renamed = (
        ("representation_learner.srra_r2tproj.", "to_text."),
        ("representation_learner.srra_r2vproj.", "to_image."),
        ("representation_learner.compound_rep_tokens", "tokens"),
        ("image_encoder.A", "projection.A"),
        ("image_encoder.B", "projection.B"),
    )
    upstream_in_encoders = ("image_encoder.A", "image_encoder.B")

    def __init__(self, *parts, projection: LowRankProduct, **settings) -> None:
        super().__init__(*parts, **settings)
        self.projection = projection

    def project_rows(self, clip: Steps, rows: Tensor) -> Tensor:
        return clip.project_image(rows) + self.projection(rows)


@TRAINER_REGISTRY.register()
class MMRLPlusPlus(RepresentationTrainer):
    """Multi-modal representation learning with shared residual maps."""

    node = "MMRLPLUSPLUS"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MMRLPLUSPLUS = node = RepresentationTrainer.shared_keys()
        #: share of a layer's new tokens where they meet those of the layers before, 0 to 1
        node.BETA = 0.9
        #: rank of the second projection's own term
        node.PROJ_LORA_DIM = 64
        #: rank of the layers' own terms
        node.RES_LORA_DIM = 4

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> MMRLPlusPlusLearner:
        node, widths = cfg.TRAINER[cls.node], cls.checked_widths(cfg, clip)
        size = (len(node.REP_LAYERS), node.RES_LORA_DIM)
        embed_dim = clip.text_projection.shape[1]
        return MMRLPlusPlusLearner(
            normal_parameter(node.N_REP_TOKENS, node.REP_DIM).data,
            SharedMaps(node.REP_DIM, widths.text, *size),
            SharedMaps(node.REP_DIM, widths.vision, *size),
            projection=LowRankProduct(widths.vision, embed_dim, node.PROJ_LORA_DIM),
            layers=node.REP_LAYERS,
            alpha=node.ALPHA,
            fresh=node.BETA,
            features=node.FEATURES,
            template=dataset_template(cfg.DATASET.NAME),
        )
