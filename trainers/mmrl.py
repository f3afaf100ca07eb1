"""MMRL: representation tokens of a shared space in the upper layers of both encoders.

Guo and Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025, arXiv
2503.08497; code: yunncheng/MMRL. Learned are the space tokens, their maps to every listed layer of
both encoders, and a second projection, of the image encoder's token rows; see
:mod:`adaptation.representations`.

As in its code: texts are the data sets' zero-shot ones; layers count from 1; all maps into one
encoder start equal; the second projection starts at random, so that its features carry nothing at
first; logits are 100 times the cosines, whatever CLIP's own factor is; ALPHA weights both the two
cross-entropies and the two logits, which are mixed as logits; the rows' features have no distance
to frozen ones. Which features classify follows from the run that trained: both kinds on its classes
and data set, the class token's on others (there: from a key TASK, which comes to the same;
FEATURES repeats either). Weight and width per data set stand in the config files, where they are
read with the name of the data set at hand. Departures: everything learned is float32, so PREC fp16,
the code's default, trains (there: no longer finite after a step); text features are computed anew
after training has gone on (there: kept for ever); a listed first layer, empty or unsorted lists are
checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptation.learner import Steps
from adaptation.representations import RepresentationLearner, RepresentationTrainer
from adaptation.starts import copies, normal_parameter
from adaptation.templates import dataset_template
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class OwnMaps(nn.ModuleList):
    """One linear map for every listed layer; they start as copies of one another.

    Args:
        width_in, width_out: of the space tokens, and of the encoder.
        n_layers: number of listed layers.
    """

    def __init__(self, width_in: int, width_out: int, n_layers: int) -> None:
        super().__init__(copies(nn.Linear(width_in, width_out), n_layers))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens ``(n, width_in)`` to a tensor ``(n, width_out)`` for every layer."""
        return [linear(tokens) for linear in self]


class MMRLLearner(RepresentationLearner):
    """Space tokens with maps of their own for every layer, and a free second projection.

    Args:
        tokens, to_text, to_image, settings: as for :class:`RepresentationLearner`.
        projection: ``(d_vision, embed_dim)`` start of the second projection.
    """

    renamed = (
        ("representation_learner.compound_rep_tokens_r2tproj.", "to_text."),
        ("representation_learner.compound_rep_tokens_r2vproj.", "to_image."),
        ("representation_learner.compound_rep_tokens", "tokens"),
        ("image_encoder.proj_rep", "projection"),
    )
    upstream_in_encoders = ("image_encoder.proj_rep",)

    def __init__(self, *parts, projection: Tensor, **settings) -> None:
        super().__init__(*parts, **settings)
        self.projection = nn.Parameter(projection)

    def project_rows(self, clip: Steps, rows: Tensor) -> Tensor:
        return rows @ self.projection


@TRAINER_REGISTRY.register()
class MMRL(RepresentationTrainer):
    """Multi-modal representation learning."""

    node = "MMRL"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MMRL = RepresentationTrainer.shared_keys()

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> MMRLLearner:
        node, widths = cfg.TRAINER[cls.node], cls.checked_widths(cfg, clip)
        n_layers = len(node.REP_LAYERS)
        projection = torch.empty(widths.vision, clip.text_projection.shape[1])
        return MMRLLearner(
            normal_parameter(node.N_REP_TOKENS, node.REP_DIM).data,
            OwnMaps(node.REP_DIM, widths.text, n_layers),
            OwnMaps(node.REP_DIM, widths.vision, n_layers),
            projection=projection.normal_(std=widths.vision**-0.5),
            layers=node.REP_LAYERS,
            alpha=node.ALPHA,
            fresh=1.0,
            features=node.FEATURES,
            template=dataset_template(cfg.DATASET.NAME),
        )
